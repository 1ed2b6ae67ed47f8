"""What a signature is made over is defined so that any language can make the same bytes."""

import base64
import datetime as dt
import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjects.canonical import canonical, signed_bytes
from subjects.codec import convert, decode, encode
from subjects.codes import InvalidMessage
from subjects.manifest import Manifest
from subjects.signature import Signature
from subjects.spec import JobSpec

NOW = "2026-11-25T18:30:00.000120Z"
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
# Between these bounds Python's own JSON writes a double as ECMAScript does.
FLOATS = st.floats(1e-4, 1e15) | st.floats(-1e15, -1e-4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**53, 2**53 - 1) | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.fixed_dictionaries(
    {
        "job_id": st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
        "created_at": st.datetimes(timezones=st.just(dt.UTC)).map(dt.datetime.isoformat),
        "operation": st.sampled_from(["convert", "inspect"]),
        "image": st.fixed_dictionaries(
            {"path": st.just("/images/a.vmdk")},
            optional={"format": st.sampled_from(["qcow2", None]), "size_bytes": st.integers(0, 2**53 - 1)},
        ),
        "artifacts": st.fixed_dictionaries(
            {"output_path": st.just("/out")}, optional={"log_upload": st.booleans()}
        ),
        "audit": st.fixed_dictionaries(
            {"requested_by": TEXT.filter(bool)}, optional={"tags": st.dictionaries(TEXT, TEXT, max_size=3)}
        ),
    },
    optional={
        "version": st.sampled_from(["1.0", "1.2"]),
        "pool": st.sampled_from(["default", "site-b"]),
        "limit": st.dictionaries(st.sampled_from(["a", "b/c"]), st.integers(1, 1000), max_size=2),
        "requested_actions": st.lists(TEXT, max_size=2),
        "capability_requirements": st.fixed_dictionaries(
            {}, optional={"needs_nbd": st.booleans(), "min_memory_gb": st.integers(1, 1000) | st.just(1.5)}
        ),
        "execution_policy": st.fixed_dictionaries(
            {}, optional={"priority": st.integers(1, 10), "not_before": st.just("2026-12-01T02:00:00+02:00")}
        ),
        "parameters": st.dictionaries(TEXT, VALUES, max_size=4),
        "from_the_future": VALUES,
    },
)
DEFAULTS: dict[str, Any] = {
    "version": "1.0", "pool": "default", "limit": {}, "requested_actions": [], "parameters": {},
    "capability_requirements": {}, "execution_policy": {}, "image.format": None, "image.size_bytes": None,
    "artifacts.log_upload": True, "audit.tags": {}, "capability_requirements.needs_nbd": False,
    "execution_policy.priority": 5,
}  # fmt: skip
NESTED = {"image", "artifacts", "audit", "capability_requirements", "execution_policy"}
TIMES = {"created_at", "execution_policy.not_before"}


def as_the_documentation_says(document: dict[str, Any]) -> bytes:
    """The canonical form, made by the standard library from the words of docs/reference/README.md alone."""
    document.pop("from_the_future", None)
    return json.dumps(sorted_by_utf16(told(document)), separators=(",", ":"), ensure_ascii=False).encode()


def told(fields: dict[str, Any], path: str = "") -> dict[str, Any]:
    found = {}
    for name, value in fields.items():
        place = path + name
        plain = told(value, f"{place}.") if place in NESTED else in_utc(value) if place in TIMES else value
        if place not in DEFAULTS or plain != DEFAULTS[place]:
            found[name] = plain
    return found


def in_utc(text: str) -> str:
    at = dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    return at.isoformat().replace("+00:00", "Z")


def sorted_by_utf16(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: sorted_by_utf16(value[name]) for name in sorted(value, key=lambda n: n.encode("utf-16-be"))
        }
    if isinstance(value, list):
        return [sorted_by_utf16(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@given(DOCUMENTS)
def test_canonical_form_is_what_another_implementation_makes_of_the_document(
    document: dict[str, Any],
) -> None:
    spec = decode(JobSpec, json.dumps(document).encode())
    assert canonical(spec) == as_the_documentation_says(json.loads(json.dumps(document)))


@given(DOCUMENTS)
def test_canonical_form_survives_the_road_over_the_wire(document: dict[str, Any]) -> None:
    spec = convert(JobSpec, document)
    again = decode(JobSpec, encode(decode(JobSpec, encode(spec))))
    assert canonical(again) == canonical(spec)
    assert canonical(decode(JobSpec, canonical(spec))) == canonical(spec)


@given(DOCUMENTS, DOCUMENTS)
def test_different_jobs_have_different_canonical_forms(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = convert(JobSpec, one), convert(JobSpec, other)
    assert (canonical(first) == canonical(second)) == (first == second)


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"), ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"), ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"), ("4340000000000000", "9007199254740992"),
        ("4430000000000000", "295147905179352830000"), ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"), ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"), ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"), ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"), ("41b3de4355555554", "333333333.33333325"),
        ("becbf647612f3696", "-0.0000033333333333333333"), ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)  # fmt: skip
def test_doubles_are_written_as_rfc_8785_shows(bits: str, text: str) -> None:
    [value] = struct.unpack(">d", bytes.fromhex(bits))
    assert f'"x":{text}}}'.encode() in canonical(job(parameters={"x": value}))


def test_keys_are_sorted_by_utf_16_as_rfc_8785_shows() -> None:
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    written = canonical(job(parameters=dict.fromkeys(names, 0))).decode()
    order = sorted(names, key=lambda name: written.index(json.dumps(name, ensure_ascii=False)))
    assert order == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize("value", [2**53, -(2**53), 10**400, float("inf"), float("nan")])
def test_number_without_a_canonical_form_cannot_be_signed(value: float) -> None:
    with pytest.raises(InvalidMessage, match="cannot be signed"):
        canonical(job(parameters={"deep": [value]}))


def test_signed_bytes_name_their_purpose_and_fleet_and_leave_the_signature_out() -> None:
    signature = Signature(key="U" + "A" * 55, value=bytes(64))
    plain = job()
    signed = msgspec.structs.replace(plain, signature=signature)
    expected = b"\xffh2kbus job v1 h2k.v1\n" + canonical(plain)
    assert signed_bytes(signed, "h2k.v1") == signed_bytes(plain, "h2k.v1") == expected


def test_signed_bytes_are_no_text_that_a_server_could_have_signed_as_a_nonce() -> None:
    with pytest.raises(UnicodeDecodeError):
        signed_bytes(job(), "h2k.v1").decode()


def job(**fields: Any) -> JobSpec:
    spec = convert(
        JobSpec,
        {
            "job_id": "j1", "created_at": NOW, "operation": "convert", "image": {"path": "/a"},
            "artifacts": {"output_path": "/b"}, "audit": {"requested_by": "ann"},
        },
    )  # fmt: skip
    return msgspec.structs.replace(spec, **fields)


def manifest(**more: object) -> Manifest:
    times = dict.fromkeys(("submitted_at", "started_at", "ended_at"), "2026-11-25T19:30:00+01:00")
    fields: dict[str, Any] = {
        "job_id": "j1", "attempt": 1, "token": 7, "operation": "convert", "spec": job(), "state": "COMPLETED",
        "submitted_by": "ann", "worker_id": "w1", "host": "h", "h2kbus_version": "0.1.0", **times, **more,
    }  # fmt: skip
    return convert(Manifest, msgspec.to_builtins(fields))


def test_manifest_is_signed_behind_a_purpose_of_its_own() -> None:
    """So that it is taken neither for a job nor for the nonce of a connection."""
    signed = signed_bytes(manifest(), "h2k.v1")
    head, _, body = signed.partition(b"\n")
    assert head == b"\xffh2kbus manifest v1 h2k.v1"
    told = json.loads(body)
    assert "signature" not in told
    assert "manifest_version" not in told, "it has its default"
    assert told["ended_at"] == "2026-11-25T18:30:00Z"


def test_signature_of_a_job_is_a_part_of_what_its_manifest_signs() -> None:
    signature = Signature(key="U" + "A" * 55, value=bytes(range(64)))
    spec = job(signature=signature)
    told = json.loads(signed_bytes(manifest(spec=spec), "h2k.v1").partition(b"\n")[2])
    assert base64.b64decode(told["spec"]["signature"]["value"]) == bytes(range(64))
