import json
from pathlib import Path
from typing import Any

import pytest

from h2kbus.documents import Defaults, read_documents
from h2kbus.documents.worker_job import plain_job
from h2kbus.errors import ErrorCode, InvalidMessage
from subjects.codec import decode
from subjects.spec import JobSpec
from tests.h2kbus.documents.conftest import Read, Refuse, Write

Job = dict[str, Any]


@pytest.mark.parametrize("name", ["job.json", "jobs.jsonl", "job.yaml"])
def test_a_v1_document_is_accepted_unchanged(read: Read, job: Job, name: str) -> None:
    (document,) = read(name, job)
    assert document.spec == decode(JobSpec, json.dumps(job).encode())
    assert document.warnings == ()


def test_the_fast_way_takes_what_is_complete_and_known(job: Job) -> None:
    assert plain_job(json.dumps(job).encode()) == decode(JobSpec, json.dumps(job).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"image": {"path": "/a", "extra": 1}},
        {"audit": {}},
        {"artifacts": None},
        {"version": "2"},
    ],
)
def test_the_fast_way_leaves_everything_else(job: Job, change: Job) -> None:
    assert plain_job(json.dumps(job | change).encode()) is None


def test_unknown_fields_are_reported_by_path(read: Read, job: Job) -> None:
    job["image"]["sha"] = "x"
    job |= {"webhook": {"url": "http://a", "on": ["done"]}, "steps": [{"a": 1}], "none": None, "e\nvil": 1}
    assert read("job.json", job)[0].warnings == (
        "$.image.sha: unknown field, ignored",
        "$.webhook.url: unknown field, ignored",
        "$.webhook.on: unknown field, ignored",
        "$.steps[0].a: unknown field, ignored",
        "$['e\\nvil']: unknown field, ignored",
    )


def test_a_deep_unknown_field_is_named_by_its_outer_part(read: Read, job: Job) -> None:
    text = json.dumps(job)[:-1] + ', "x": ' + '{"a":' * 50 + "1" + "}" * 50 + "}"
    (warning,) = read("job.json", text)[0].warnings
    assert warning.startswith("$.x.a.a.")
    assert len(warning) < 300


def test_very_many_unknown_fields_are_counted(read: Read, job: Job) -> None:
    warnings = read("job.json", job | {f"x{n}": 1 for n in range(150)})[0].warnings
    assert len(warnings) == 101
    assert warnings[-1] == "$: 50 more unknown fields are ignored"


@pytest.mark.parametrize("state", ["Completed", "QUEUED", "running"])
def test_a_state_is_known_in_any_case_and_starts_anew(read: Read, job: Job, state: str) -> None:
    (warning,) = read("job.json", job | {"state": state})[0].warnings
    assert warning == f"$.state: the job was {state.upper()} elsewhere; it starts anew here"


def test_a_naive_time_is_utc(read: Read, job: Job) -> None:
    created = read("job.json", job | {"created_at": "2026-01-30T10:00:00"})[0].spec.created_at
    assert str(created) == "2026-01-30 10:00:00+00:00"


@pytest.mark.parametrize("checksum", ["sha256:abc123...", "sha256:...", "abc\u2026", "sha256:ab...cd"])
def test_an_elided_checksum_is_dropped_with_a_warning(read: Read, job: Job, checksum: str) -> None:
    job["image"]["checksum"] = checksum
    (document,) = read("job.json", job)
    assert document.spec.image.checksum is None
    assert document.warnings == ("$.image.checksum: the checksum is elided, so nothing is verified by it",)


def test_any_other_checksum_that_does_not_fit_is_refused(refuse: Refuse, job: Job) -> None:
    job["image"]["checksum"] = "md5:abc"
    assert refuse("job.json", job).path == "$.image.checksum"


@pytest.mark.parametrize("audit", [None, {}, {"requested_by": None}, {"ticket": "X-1"}])
def test_the_submitter_is_filled_in(read: Read, job: Job, audit: Job | None) -> None:
    job["audit"] = audit
    assert read("job.json", job)[0].spec.audit.requested_by == "carol"


@pytest.mark.parametrize("artifacts", [None, {}, {"log_upload": False}])
def test_the_output_directory_is_filled_in(read: Read, job: Job, artifacts: Job | None) -> None:
    job["artifacts"] = artifacts
    assert read("job.json", job)[0].spec.artifacts.output_path == "/default/out"


def test_no_output_directory_anywhere_is_refused(write: Write, job: Job) -> None:
    del job["artifacts"]
    with pytest.raises(InvalidMessage) as caught:
        list(read_documents(write("job.json", job), Defaults("carol")))
    assert caught.value.path == "$.artifacts.output_path"


def test_relative_paths_are_those_of_the_document(read: Read, job: Job, tmp_path: Path) -> None:
    job["image"]["path"], job["artifacts"]["output_path"] = "../disks/./a.vmdk", "out"
    spec = read("job.json", job)[0].spec
    assert spec.image.path == str(tmp_path.parent / "disks/a.vmdk")
    assert spec.artifacts.output_path == str(tmp_path / "out")


@pytest.mark.parametrize("name", ["job.json", "jobs.jsonl", "job.yaml"])
@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"execution_policy": {"priority": 11}}, "$.execution_policy.priority"),
        ({"job_id": "a.b"}, "$.job_id"),
        ({"job_id": "a*"}, "$.job_id"),
        ({"version": "2.0"}, "$.version"),
        ({"image": {"path": ""}}, "$.image.path"),
        ({"image": {}}, "$.image"),
        ({"image": "disk"}, "$.image"),
        ({"artifacts": 1}, "$.artifacts"),
        ({"audit": []}, "$.audit"),
    ],
)
def test_an_error_names_the_file_and_the_field(
    refuse: Refuse, job: Job, name: str, change: Job, path: str
) -> None:
    error = refuse(name, job | change)
    assert error.path == path
    assert error.error_code is ErrorCode.INVALID_SPEC
    origin = f"{name}:1" if name == "jobs.jsonl" else name
    assert str(error).startswith(f"{path}: ")
    assert str(error).endswith(f"/{origin})")
