"""Whatever arrives is either a message of the contract or a refusal that names the place."""

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest

from subjects.codec import MAX_DEPTH, convert, decode, encode
from subjects.codes import ErrorCode, InvalidMessage
from subjects.lifecycle import created
from subjects.record import JobRecord, Transition
from subjects.spec import CapabilityRequirements, JobSpec
from subjects.states import State

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def document(**changes: Any) -> dict[str, Any]:
    return {
        "operation": "inspect",
        "image": {"path": "/a.raw"},
        "artifacts": {"output_path": "/out"},
        "audit": {"requested_by": "ann"},
        **changes,
    }


def text(**changes: Any) -> bytes:
    return json.dumps(document(**changes)).encode()


def nested(depth: int) -> bytes:
    return text(parameters={"deep": "HERE"}).replace(b'"HERE"', b"[" * depth + b"]" * depth)


def decode_nested(depth: int) -> object:
    return decode(list, b"[" * depth + b"]" * depth) or True


def convert_nested(depth: int) -> object:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return convert(list, value) or True


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"nonsense",
        b"{'operation': 'inspect'}",
        text()[:-1],
        text() + b"x",
        text() + text(),
        b"\xff\xfe",
        b"\xef\xbb\xbf" + text(),
        text(parameters={"x": "HERE"}).replace(b"HERE", b"\xff"),
        text(parameters={"HERE": 1}).replace(b"HERE", b"\xc3\x28"),
        text(image={"path": "/HERE"}).replace(b"HERE", b"\x80"),
        text(parameters={"x": "HERE"}).replace(b'"HERE"', b"NaN"),
        text(parameters={"x": "HERE"}).replace(b'"HERE"', b"Infinity"),
        text(parameters={"x": "HERE"}).replace(b"HERE", b"\\ud800"),
        text(parameters={"x": "HERE"}).replace(b"HERE", b"\x00"),
        nested(100_000),
    ],
)
def test_what_is_not_json_is_refused_as_such(data: bytes) -> None:
    with pytest.raises(InvalidMessage, match=r"not valid JSON|nested deeper") as refusal:
        decode(JobSpec, data)
    assert refusal.value.error_code is ErrorCode.INVALID_SPEC
    assert refusal.value.path == "$"


@pytest.mark.parametrize("data", [b"[]", b"null", b"1", b'"job"', b"true"])
def test_json_of_another_shape_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessage, match="Expected `object`"):
        decode(JobSpec, data)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"operation": 1}, "$.operation"),
        ({"image": []}, "$.image"),
        ({"image": {"path": None}}, "$.image.path"),
        ({"execution_policy": {"priority": "5"}}, "$.execution_policy.priority"),
        ({"execution_policy": {"priority": 5.5}}, "$.execution_policy.priority"),
        ({"execution_policy": {"idempotent": "yes"}}, "$.execution_policy.idempotent"),
        ({"requested_actions": ["a", 2]}, "$.requested_actions[1]"),
        ({"audit": {"requested_by": "ann", "tags": {"a": 1}}}, "$.audit.tags[...]"),
        ({"created_at": "yesterday"}, "$.created_at"),
        ({"created_at": 1_700_000_000}, "$.created_at"),
        ({"parameters": None}, "$.parameters"),
    ],
)
def test_a_wrong_type_is_refused_with_its_path(changes: dict[str, Any], path: str) -> None:
    readers: tuple[Callable[[], JobSpec], ...] = (
        lambda: decode(JobSpec, text(**changes)),
        lambda: convert(JobSpec, document(**changes)),
    )
    for read in readers:
        with pytest.raises(InvalidMessage) as refusal:
            read()
        assert refusal.value.path == path
        assert str(refusal.value).startswith(f"{path}: ")


def test_a_missing_field_is_refused_by_name() -> None:
    with pytest.raises(InvalidMessage, match=r"^\$: .*missing required field `operation`"):
        decode(JobSpec, b"{}")


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    huge = text(capability_requirements={"min_memory_gb": "HERE"}).replace(b'"HERE"', b"1e999")
    with pytest.raises(InvalidMessage, match=r"^\$\.capability_requirements\.min_memory_gb"):
        decode(JobSpec, huge)


def test_not_a_number_is_no_amount_of_memory() -> None:
    with pytest.raises(InvalidMessage):
        convert(CapabilityRequirements, {"min_memory_gb": float("nan")})


def test_messages_are_compact_utf8_json() -> None:
    line = Transition(None, State.CREATED, NOW, "zoë")
    expected = '{"from":null,"to":"CREATED","at":"2026-03-01T12:00:00Z","by":"zoë","reason":null}'
    assert encode(line) == expected.encode()


def test_a_message_survives_the_wire() -> None:
    spec = decode(JobSpec, text(created_at="2026-03-01T12:00:00Z", parameters={"a": [1, 2.5, None, "é"]}))
    record = created(spec, job_id="j", submitter="ann", lane="any", now=NOW, by="s1")
    assert decode(JobRecord, encode(record)) == record


def from_a_deeper_stack(frames: int, read: Callable[[], JobRecord]) -> JobRecord:
    return read() if frames == 0 else from_a_deeper_stack(frames - 1, read)


def deepest_accepted() -> JobSpec:
    """The most deeply nested job that the decoder takes, here and now."""
    low, high = 1, 100_000
    while high - low > 1:
        middle = (low + high) // 2
        try:
            decode(JobSpec, nested(middle))
        except InvalidMessage:
            high = middle
        else:
            low = middle
    return decode(JobSpec, nested(low))


def test_a_job_that_the_scheduler_reads_can_be_read_by_everyone() -> None:
    record = created(deepest_accepted(), job_id="j", submitter="ann", lane="any", now=NOW, by="s1")
    sent = encode(record)
    assert from_a_deeper_stack(30, lambda: decode(JobRecord, sent)) == record


def test_infinity_is_no_amount_of_memory() -> None:
    with pytest.raises(InvalidMessage):
        convert(CapabilityRequirements, {"min_memory_gb": float("inf")})


def test_a_value_cannot_forge_the_path_of_its_refusal() -> None:
    with pytest.raises(InvalidMessage) as refusal:
        decode(JobSpec, text(image={"path": "/a", "format": "x - at `$.audit`"}))
    assert refusal.value.path == "$.image.format"


def test_a_key_that_is_no_text_is_refused_with_its_path() -> None:
    with pytest.raises(InvalidMessage, match=r"as a key$") as refusal:
        convert(JobSpec, document(audit={"requested_by": "ann", "tags": {1: "a"}}))
    assert refusal.value.path == "$.audit.tags"


@pytest.mark.parametrize("read", [decode_nested, convert_nested])
def test_nesting_is_read_as_deep_as_the_bound(read: Callable[[int], object]) -> None:
    assert read(MAX_DEPTH)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1_000, 500_000])
@pytest.mark.parametrize("read", [decode_nested, convert_nested])
def test_deeper_nesting_is_refused_as_such(read: Callable[[int], object], depth: int) -> None:
    with pytest.raises(InvalidMessage, match=r"^\$: nested deeper than 64 levels$"):
        read(depth)


@pytest.mark.parametrize("value", ["[" * 1_000, '{"' * 1_000, '\\"[' * 1_000, [[]] * 1_000])
def test_brackets_that_nest_nothing_are_not_counted(value: object) -> None:
    assert decode(JobSpec, text(parameters={"x": value})).parameters == {"x": value}


@pytest.mark.parametrize("tail", [b"", b"\\", b"\\\n"])
def test_a_string_without_an_end_is_scanned_once(tail: bytes) -> None:
    with pytest.raises(InvalidMessage):
        decode(JobSpec, b"[" * 65 + b'"' + b'\\"' * 500_000 + tail)


def test_a_job_deeper_than_its_record_can_hold_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="parameters are nested deeper than 32 levels"):
        decode(JobSpec, nested(32))


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_that_utc_cannot_hold_is_refused(moment: str) -> None:
    with pytest.raises(InvalidMessage, match="not within the years 1-9999"):
        decode(JobSpec, text(created_at=moment))
