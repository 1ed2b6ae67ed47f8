"""A job is read by the ranges of the protocol, and refused with the path of the field."""

import copy
import datetime as dt
import json
from typing import Any

import msgspec
import pytest

from subjects.catalog import OperationCatalog
from subjects.codec import decode, encode
from subjects.codes import InvalidMessage
from subjects.events import ProgressEvent
from subjects.fleet import WorkerCapabilities
from subjects.record import DeadLetter, JobRecord
from subjects.result import JobResult
from subjects.spec import JobSpec

MINIMAL: dict[str, Any] = {
    "operation": "inspect",
    "image": {"path": "/images/web01.vmdk"},
    "artifacts": {"output_path": "/out"},
    "audit": {"requested_by": "ann"},
}
V1_JOB: dict[str, Any] = {
    "version": "1.0",
    "job_id": "job-2026-03-01-001",
    "created_at": "2026-03-01T12:30:45.123456",
    "operation": "convert",
    "image": {
        "path": "/images/web01.vmdk",
        "format": "vmdk",
        "checksum": "sha256:" + "0123456789abcdef" * 4,
        "size_bytes": 42949672960,
    },
    "requested_actions": [],
    "capability_requirements": {
        "needs_nbd": True,
        "needs_lvm": False,
        "needs_mount": False,
        "needs_selinux_tools": False,
        "min_memory_gb": 2,
        "min_disk_space_gb": 50,
    },
    "execution_policy": {"retry_count": 2, "timeout_seconds": 3600, "idempotent": True, "priority": 3},
    "artifacts": {
        "output_path": "/out/web01",
        "log_upload": True,
        "store_fixed_image": True,
        "keep_intermediates": False,
    },
    "audit": {"requested_by": "ann@example.org", "ticket": "OPS-17", "tags": {"wave": "3", "env": "prod"}},
    "parameters": {"output_format": "qcow2", "compress": True},
}
ABSENT = object()
CHECKSUM = "0123456789abcdef" * 4


def document(path: str, value: object) -> bytes:
    """The smallest job with one field set, or left out."""
    job = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    place = job
    for name in parents:
        place = place.setdefault(name, {})
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return json.dumps(job).encode()


def field(spec: JobSpec, path: str) -> Any:
    value: Any = spec
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("execution_policy.priority", 1),
        ("execution_policy.priority", 10),
        ("execution_policy.retry_count", 0),
        ("execution_policy.retry_count", 5),
        ("execution_policy.timeout_seconds", 60),
        ("execution_policy.timeout_seconds", 86_400),
        ("execution_policy.idempotent", False),
        ("capability_requirements.min_memory_gb", 1),
        ("capability_requirements.min_memory_gb", 1.5),
        ("capability_requirements.min_disk_space_gb", 1),
        ("capability_requirements.min_disk_space_gb", None),
        ("job_id", "a"),
        ("job_id", "-"),
        ("job_id", "A_b-9" * 25 + "xyz"),
        ("image.size_bytes", 0),
        ("image.size_bytes", 2**60),
        ("image.checksum", CHECKSUM),
        ("image.checksum", CHECKSUM.upper()),
        ("image.checksum", "sha256:" + CHECKSUM),
        ("image.checksum", None),
        *(("image.format", name) for name in ("qcow2", "vmdk", "raw", "vdi", "vhd", "vhdx", None)),
        ("image.path", "/with space/é.vmdk"),
        ("image.path", "/" + "a" * 4095),
        ("version", "1"),
        ("version", "1.0"),
        ("version", "1.7"),
        ("version", "1.2.3"),
        ("pool", "site-a"),
        ("pool", "p" * 32),
        ("operation", "a" * 64),
        ("audit.requested_by", "a" * 256),
    ],
)
def test_a_value_within_its_range_is_kept(path: str, value: object) -> None:
    assert field(decode(JobSpec, document(path, value)), path) == value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("execution_policy.priority", 0),
        ("execution_policy.priority", 11),
        ("execution_policy.priority", -1),
        ("execution_policy.retry_count", -1),
        ("execution_policy.retry_count", 6),
        ("execution_policy.timeout_seconds", 59),
        ("execution_policy.timeout_seconds", 86_401),
        ("capability_requirements.min_memory_gb", 0),
        ("capability_requirements.min_memory_gb", 0.99),
        ("capability_requirements.min_disk_space_gb", 0),
        ("capability_requirements.min_disk_space_gb", -5),
        ("job_id", ""),
        ("job_id", "a.b"),
        ("job_id", "a*"),
        ("job_id", ">"),
        ("job_id", "a b"),
        ("job_id", "a\n"),
        ("job_id", "../../x"),
        ("job_id", "é"),
        ("job_id", "a" * 129),
        ("image.size_bytes", -1),
        ("image.size_bytes", 1.5),
        ("image.checksum", ""),
        ("image.checksum", CHECKSUM[:-1]),
        ("image.checksum", CHECKSUM + "0"),
        ("image.checksum", CHECKSUM + "\n"),
        ("image.checksum", "sha256:abc123..."),
        ("image.checksum", "md5:" + CHECKSUM),
        ("image.checksum", "g" * 64),
        ("image.format", "vpc"),
        ("image.format", "QCOW2"),
        ("image.format", ""),
        ("image.path", ""),
        ("image.path", "relative.vmdk"),
        ("image.path", "nbd://host/disk"),
        ("image.path", "json:{}"),
        ("image.path", "/a\x00b"),
        ("image.path", "/" + "a" * 4096),
        ("version", "2.0"),
        ("version", "0.9"),
        ("version", "10"),
        ("version", "1."),
        ("version", "1.0\n"),
        ("version", ""),
        ("version", 1.0),
        ("pool", "Site"),
        ("pool", "a.b"),
        ("pool", ""),
        ("pool", "p" * 33),
        ("operation", ""),
        ("operation", "Convert"),
        ("operation", "a" * 65),
        ("audit.requested_by", ""),
        ("audit.requested_by", "a" * 257),
    ],
)
def test_a_value_outside_its_range_is_refused_with_its_path(path: str, value: object) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        decode(JobSpec, document(path, value))
    assert refusal.value.path == f"$.{path}"


@pytest.mark.parametrize(
    "path",
    ["operation", "image", "image.path", "artifacts", "artifacts.output_path", "audit", "audit.requested_by"],
)
def test_a_required_field_is_missed_by_name(path: str) -> None:
    with pytest.raises(InvalidMessage, match=f"missing required field `{path.rpartition('.')[2]}`"):
        decode(JobSpec, document(path, ABSENT))


def test_the_defaults_are_the_protocols() -> None:
    spec = decode(JobSpec, json.dumps(MINIMAL).encode())
    assert (spec.version, spec.job_id, spec.created_at, spec.parameters) == ("1.0", None, None, {})
    policy, kept, needs = spec.execution_policy, spec.artifacts, spec.capability_requirements
    assert (policy.retry_count, policy.timeout_seconds, policy.idempotent, policy.priority) == (
        0,
        7200,
        True,
        5,
    )
    assert (kept.log_upload, kept.store_fixed_image, kept.keep_intermediates) == (True, True, False)
    assert not any((needs.needs_nbd, needs.needs_lvm, needs.needs_mount, needs.needs_selinux_tools))
    assert (needs.min_memory_gb, needs.min_disk_space_gb) == (None, None)


def test_a_v1_job_is_accepted_unchanged() -> None:
    spec = decode(JobSpec, json.dumps(V1_JOB).encode())
    OperationCatalog().declaration_of(spec)
    written = json.loads(encode(spec))
    # What v1 does not know has no value.
    assert [written["execution_policy"].pop(each) for each in ("deadline", "not_before")] == [None, None]
    assert written.pop("limit") == {}
    assert written.pop("signature") is None
    assert written == {**V1_JOB, "created_at": "2026-03-01T12:30:45.123456Z", "pool": "default"}


def test_a_deadline_before_the_job_may_start_is_refused() -> None:
    policy = {"not_before": "2026-03-02T00:00:00Z", "deadline": "2026-03-02T01:00:00+02:00"}
    with pytest.raises(InvalidMessage, match="deadline is not after not_before"):
        decode(JobSpec, document("execution_policy", policy))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-03-01T12:00:00", "2026-03-01T12:00:00+00:00"),
        ("2026-03-01T12:00:00.5", "2026-03-01T12:00:00.500000+00:00"),
        ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00+00:00"),
        ("2026-03-01T12:00:00+02:00", "2026-03-01T10:00:00+00:00"),
        ("2026-03-01T12:00:00-05:30", "2026-03-01T17:30:00+00:00"),
    ],
)
def test_a_naive_time_is_utc_and_an_offset_is_heeded(written: str, meant: str) -> None:
    spec = decode(JobSpec, document("created_at", written))
    assert spec.created_at == dt.datetime.fromisoformat(meant)
    assert spec.created_at.tzinfo is dt.UTC


@pytest.mark.parametrize("offset", [None, dt.timezone(dt.timedelta(hours=2))])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (WorkerCapabilities, {"worker_id": "w", "hostname": "h", "last_heartbeat": "TIME"}),
        (JobResult, {"job_id": "j", "status": "COMPLETED", "completed_at": "TIME"}),
        (
            JobRecord,
            {
                "job_id": "j",
                "state": "RETRYING",
                "submitted_by": "ann",
                "created_at": "TIME",
                "updated_at": "TIME",
                "next_attempt_at": "TIME",
            },
        ),
        (
            ProgressEvent,
            {
                "job_id": "j",
                "seq": 1,
                "timestamp": "TIME",
                "state": "RUNNING",
                "phase": "probe",
                "progress_percent": 0,
            },
        ),
        (
            DeadLetter,
            {"subject": "s", "reason": "r", "message": "m", "at": "TIME", "by": "b", "data": ""},
        ),
    ],
)
def test_the_times_of_every_message_are_kept_in_utc(
    kind: type[msgspec.Struct], fields: dict[str, Any], offset: dt.tzinfo | None
) -> None:
    written = dt.datetime(2026, 3, 1, 12, tzinfo=offset)
    times = [name for name, value in fields.items() if value == "TIME"]
    message = decode(kind, json.dumps({**fields, **dict.fromkeys(times, written.isoformat())}).encode())
    meant = dt.datetime(2026, 3, 1, 12 if offset is None else 10, tzinfo=dt.UTC)
    assert [getattr(message, name) for name in times] == [meant] * len(times)
    assert all(getattr(message, name).tzinfo is dt.UTC for name in times)


@pytest.mark.parametrize(
    "path", ["new_field", "image.new_field", "execution_policy.new_field", "audit.new_field"]
)
def test_an_unknown_field_is_ignored(path: str) -> None:
    assert decode(JobSpec, document(path, {"any": ["thing"]})) == decode(
        JobSpec, json.dumps(MINIMAL).encode()
    )


def test_a_job_cannot_be_changed_after_it_was_read() -> None:
    spec = decode(JobSpec, json.dumps(MINIMAL).encode())
    with pytest.raises(AttributeError):
        spec.operation = "convert"  # type: ignore[misc]
