"""The published schemas are current, valid, and say what the code does."""

import datetime as dt
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from subjects import lifecycle
from subjects.builtin import BUILT_IN, ConvertParameters
from subjects.codec import convert, encode
from subjects.codes import ErrorCode
from subjects.commands import CancelCommand, RetryCommand
from subjects.events import milestone
from subjects.fleet import LaneAnnouncement, WorkerCapabilities, WorkerOrder
from subjects.limits import Ceiling, Place
from subjects.locks import lock_of
from subjects.manifest import DiskFacts, KeptObject, Manifest
from subjects.quota import Quota, Refusal
from subjects.record import DeadLetter, JobRecord, LaneMessage, ProgressSummary
from subjects.reference import documents
from subjects.result import JobError, JobResult, Metrics, Outputs
from subjects.schema import MESSAGES, json_schema
from subjects.spec import JobSpec
from subjects.states import State

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
TIMES = {
    "at",
    "completed_at",
    "created_at",
    "deadline",
    "ended_at",
    "last_heartbeat",
    "next_attempt_at",
    "not_before",
    "started_at",
    "submitted_at",
    "timestamp",
    "updated_at",
}
ERROR = JobError(code=ErrorCode.TIMEOUT, message="too slow", phase="convert", details={"seconds": 60})
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SPECS = st.fixed_dictionaries(
    {
        "operation": st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True),
        "image": st.fixed_dictionaries(
            {"path": st.just("/images/a.vmdk")},
            optional={
                "format": st.sampled_from(["qcow2", "vmdk", "raw", "vdi", "vhd", "vhdx", None]),
                "checksum": st.from_regex(r"(sha256:)?[0-9a-fA-F]{64}", fullmatch=True),
                "size_bytes": st.integers(0, 2**62),
            },
        ),
        "artifacts": st.fixed_dictionaries(
            {"output_path": TEXT.map(lambda text: "/" + text.replace("\0", ""))}
        ),
        "audit": st.fixed_dictionaries(
            {"requested_by": st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)},
            optional={"ticket": TEXT, "tags": st.dictionaries(TEXT, TEXT, max_size=3)},
        ),
    },
    optional={
        "job_id": st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True),
        "created_at": st.datetimes().map(dt.datetime.isoformat),
        "requested_actions": st.lists(TEXT, max_size=3),
        "execution_policy": st.fixed_dictionaries(
            {}, optional={"priority": st.integers(1, 10), "timeout_seconds": st.integers(60, 86_400)}
        ),
        "parameters": st.dictionaries(TEXT, JSON, max_size=3),
    },
)


def spec() -> JobSpec:
    return convert(
        JobSpec,
        {
            "job_id": "j1",
            "operation": "convert",
            "image": {"path": "/a.vmdk", "format": "vmdk"},
            "artifacts": {"output_path": "/out"},
            "audit": {"requested_by": "ann", "tags": {"wave": "1"}},
            "capability_requirements": {"needs_nbd": True, "min_memory_gb": 2},
        },
    )


def examples() -> Iterator[msgspec.Struct]:
    """Messages as the bus really carries them, at least one of every kind."""
    queued = lifecycle.created(spec(), job_id="j1", submitter="ann", lane="qemu-img", now=NOW, by="s1")
    running = lifecycle.claimed(queued, worker_id="w1", revision=1, now=NOW)
    moving = lifecycle.renewed(running, ProgressSummary(phase="convert", progress_percent=12.5), now=NOW)
    waiting = lifecycle.retrying(moving, ERROR, now=NOW, by="w1", next_attempt_at=NOW)
    result = JobResult(
        job_id="j1",
        status=State.COMPLETED,
        completed_at=NOW,
        worker_id="w1",
        outputs=Outputs(fixed_image="/out/a.qcow2", intermediates=("/out/b",)),
        metrics=Metrics(execution_seconds=1.5, phase_seconds={"convert": 1.0}, disk_read_bytes=7),
        warnings=("sparse",),
        summary={"sizes": [1, 2]},
    )
    done = lifecycle.completed(moving, result, now=NOW)
    refused = lifecycle.refused(None, job_id="j2", submitter="ann", error=ERROR, now=NOW, by="s1")
    records = (queued, running, moving, waiting, done, refused)
    yield from records
    yield from (milestone(record, revision) for revision, record in enumerate(records, 1))
    yield from (spec(), result, LaneMessage(revision=1, record=queued))
    yield from (CancelCommand(reason="no longer needed"), CancelCommand(), RetryCommand(parent="j3"))
    yield DeadLetter(
        subject="h2k.v1.x", reason="invalid-spec", message="no", at=NOW, by="s1", data=b"\x00\xff"
    )
    yield WorkerCapabilities(worker_id="w1", hostname="h", last_heartbeat=NOW, running_jobs=("j1",))
    yield Manifest(
        job_id="j1",
        attempt=1,
        token=7,
        operation="convert",
        spec=spec(),
        submitted_by="ann",
        worker_id="w1",
        host="h",
        h2kbus_version="0.1.0",
        submitted_at=NOW,
        started_at=NOW,
        ended_at=NOW,
        state=State.COMPLETED,
        tools={"qemu-img": "7.2"},
        inputs=(DiskFacts(path="/images/a.vmdk", format="vmdk", sha256="0" * 64),),
        artifacts=(KeptObject(name="j1/1/log", size=7, sha256="0" * 64),),
    )
    yield lock_of("default", "/out/disk.qcow2", "j1")
    yield WorkerOrder(order="cordon", by="ann", at=NOW)
    yield Place(label="source-host/esx-07", number=0, job_id="j1")
    yield Ceiling(at_most=4, by="ann", at=NOW)
    yield Quota(queued=1000, rate=2.5, by="ann", at=NOW)
    yield Refusal(reason="ann: 1000 jobs that have not ended are allowed", refused=3, by="s1", at=NOW)
    yield LaneAnnouncement(pool="default", lane="qemu-img", priority=5, consumer="default_qemu-img_5")
    yield from (each.parameters() for each in BUILT_IN)
    yield ConvertParameters(subformat="streamOptimized")


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(child)


def resolve(root: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/"), reference
    place: Any = root
    for step in reference.removeprefix("#/").split("/"):
        place = place[step]
    return place


def references(tree: dict[str, Any]) -> set[str]:
    return {node["$ref"] for node in nodes(tree) if isinstance(node.get("$ref"), str)}


def fits(message: msgspec.Struct) -> list[str]:
    validator = Draft202012Validator(json_schema(type(message)))
    return [error.message for error in validator.iter_errors(json.loads(encode(message)))]


def test_the_repository_has_exactly_the_generated_files() -> None:
    assert {path.name for path in REFERENCE.iterdir()} == {*documents(), "README.md"}


@pytest.mark.parametrize("name", documents())
def test_a_file_of_the_repository_is_current(name: str) -> None:
    written = (REFERENCE / name).read_text(encoding="utf-8")
    assert written == documents()[name], "write it again: h2kbus schema --output docs/reference"


def test_the_documents_are_the_same_every_time() -> None:
    assert documents() == documents()


@pytest.mark.parametrize("message", MESSAGES)
def test_a_schema_is_valid_and_complete_in_itself(message: type[msgspec.Struct]) -> None:
    schema = json_schema(message)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == message.__name__
    assert all(resolve(schema, reference) for reference in references(schema))


@pytest.mark.parametrize("message", MESSAGES)
def test_every_time_is_declared_as_one(message: type[msgspec.Struct]) -> None:
    declared = {
        name
        for node in nodes(json_schema(message))
        for name, field in node.get("properties", {}).items()
        if any(each.get("format") == "date-time" for each in nodes(field))
    }
    every = {name for node in nodes(json_schema(message)) for name in node.get("properties", {})}
    assert declared == every & TIMES


def test_every_schema_has_a_name_of_its_own() -> None:
    ids = [json_schema(message)["$id"] for message in MESSAGES]
    assert len(set(ids)) == len(ids)
    assert json_schema(JobSpec)["$id"] == "urn:h2kbus:v1:job-spec"


def test_the_parameters_of_every_built_in_operation_are_published() -> None:
    assert {operation.parameters for operation in BUILT_IN} <= set(MESSAGES)


@pytest.mark.parametrize("name", [name for name in documents() if name.endswith(".json")])
def test_patterns_are_ones_that_every_language_knows(name: str) -> None:
    patterns = [
        node["pattern"]
        for node in nodes(json.loads(documents()[name]))
        if isinstance(node.get("pattern"), str)
    ]
    assert not [pattern for pattern in patterns if "(?" in pattern or not re.fullmatch(r"\^.*\$", pattern)]


@pytest.mark.parametrize("message", tuple(examples()), ids=lambda message: type(message).__name__)
def test_what_the_bus_carries_fits_its_schema(message: msgspec.Struct) -> None:
    assert fits(message) == []


def test_every_kind_of_message_has_been_tried() -> None:
    assert {type(message) for message in examples()} == set(MESSAGES)


@settings(max_examples=60)
@given(SPECS)
def test_every_job_that_is_accepted_fits_its_schema(document: dict[str, Any]) -> None:
    assert Draft202012Validator(json_schema(JobSpec)).is_valid(document)
    assert fits(convert(JobSpec, document)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": "2.0"},
        {"job_id": "a.b"},
        {"job_id": "a" * 129},
        {"operation": None},
        {"image": {"path": "relative"}},
        {"image": {"path": "/a", "format": "vpc"}},
        {"image": {"path": "/a", "checksum": "abc"}},
        {"execution_policy": {"priority": 0}},
        {"execution_policy": {"priority": 11}},
        {"execution_policy": {"retry_count": 6}},
        {"execution_policy": {"timeout_seconds": 59}},
        {"execution_policy": {"timeout_seconds": 86_401}},
        {"capability_requirements": {"min_memory_gb": 0}},
        {"audit": {}},
    ],
)
def test_the_schema_refuses_what_the_bus_refuses(wrong: dict[str, Any]) -> None:
    document = {**json.loads(encode(spec())), **wrong}
    assert not Draft202012Validator(json_schema(JobSpec)).is_valid(document)


def test_the_schema_of_parameters_refuses_unknown_ones() -> None:
    assert not Draft202012Validator(json_schema(ConvertParameters)).is_valid({"compres": True})


def test_a_record_of_the_schema_has_the_ten_states() -> None:
    assert json_schema(JobRecord)["$defs"]["State"]["enum"] == sorted(State)
