"""The job as its submitter writes it: JobSpec of the Worker Job Protocol v1.

Ranges and defaults come from the protocol; a value outside of them is refused with the field's path.
`pool` is this bus's own optional addition; a v1 document without it is complete.
"""

import datetime as dt
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from subjects.signature import Signature

# `$` alone would let a trailing newline through in Python; the look-ahead means the same in ECMA regexes.
_END = r"$(?!\n)"

JobId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,128}" + _END, description="1-128 of A-Z a-z 0-9 _ -")]
OperationName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}" + _END)]
PoolName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}" + _END)]
AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\x00]*" + r"$", max_length=4096)]
Checksum = Annotated[str, Meta(pattern=r"^(sha256:)?[0-9a-fA-F]{64}" + _END)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}" + _END, description="SHA-256 in hex")]
Version = Annotated[str, Meta(pattern=r"^1(\.[0-9]+)*" + _END, description="major version 1")]
Text = Annotated[str, Meta(max_length=4096)]
Timestamp = Annotated[
    dt.datetime,
    Meta(description="RFC 3339; UTC without an offset", extra_json_schema={"format": "date-time"}),
]
LimitLabel = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_=/-]+(\.[A-Za-z0-9_=/-]+)*" + _END, max_length=128, min_length=1)
]
Places = Annotated[int, Meta(ge=1, le=1000)]
Gigabytes = Annotated[float, Meta(ge=1, le=1_000_000)]

ImageFormat = Literal["qcow2", "vmdk", "raw", "vdi", "vhd", "vhdx"]
Priority = Annotated[int, Meta(ge=1, le=10, description="1 is the most urgent")]

DEFAULT_POOL = "default"
_CONTAINERS = (dict, list, tuple)
MAX_PARAMETER_DEPTH = 32
"""Room is left for the record and the messages that a job is embedded in; see `subjects.codec`."""
MAX_SPEC_BYTES = 256 * 1024
"""A job larger than this is refused: the record that embeds it must fit NATS's 1 MiB payload."""


def as_utc(moment: dt.datetime) -> dt.datetime:
    """The same moment in UTC; a naive time is one already (the protocol's rule).

    Raises ValueError when its offset takes it out of the years that a time can have.
    """
    try:
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    except OverflowError:
        raise ValueError(f"{moment.isoformat()} is not within the years 1-9999 of UTC") from None


def keep_utc(message: msgspec.Struct, *fields: str) -> None:
    """Bring these fields of a message that is being built to UTC. Raises ValueError like `as_utc`."""
    for field in fields:
        moment = getattr(message, field)
        if moment is not None and moment.tzinfo is not dt.UTC:
            msgspec.structs.force_setattr(message, field, as_utc(moment))


def is_deeper(value: Any, levels: int) -> bool:
    """Whether containers are nested deeper than that; goes level by level, so that no stack is needed."""
    inside = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(levels):
        if not inside:
            return False
        inside = [inner for each in inside for inner in _contents(each) if isinstance(inner, _CONTAINERS)]
    return bool(inside)


def _contents(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The disk image to work on, by its absolute path on the worker's host."""

    path: AbsolutePath
    format: ImageFormat | None = None
    checksum: Checksum | None = None
    size_bytes: Annotated[int, Meta(ge=0)] | None = None


class CapabilityRequirements(msgspec.Struct, frozen=True, kw_only=True):
    """What the job needs of its worker beyond what its operation needs anyway."""

    needs_nbd: bool = False
    needs_lvm: bool = False
    needs_mount: bool = False
    needs_selinux_tools: bool = False
    min_memory_gb: Gigabytes | None = None
    min_disk_space_gb: Gigabytes | None = None


class ExecutionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often, how long and how urgently. `timeout_seconds` bounds one attempt.

    Not in v1: a job does not start before `not_before`, and one that has not ended by its `deadline`
    FAILED. Both are held against the clock of the NATS server.
    """

    retry_count: Annotated[int, Meta(ge=0, le=5)] = 0
    timeout_seconds: Annotated[int, Meta(ge=60, le=86400)] = 7200
    idempotent: bool = True
    priority: Priority = 5
    deadline: Timestamp | None = None
    not_before: Timestamp | None = None

    def __post_init__(self) -> None:
        keep_utc(self, "deadline", "not_before")
        if self.deadline and self.not_before and self.deadline <= self.not_before:
            raise ValueError("deadline is not after not_before")


class ArtifactPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Where results go and which are kept. `output_path` is a directory on the worker's host."""

    output_path: AbsolutePath
    log_upload: bool = True
    store_fixed_image: bool = True
    keep_intermediates: bool = False


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for it and why."""

    requested_by: Annotated[str, Meta(min_length=1, max_length=256)]
    ticket: Text | None = None
    tags: dict[str, str] = {}


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One disk job. Unknown fields are ignored, so that newer documents stay readable.

    Not in v1: `limit` says for each label, a source host for instance, how many jobs with that label may
    run at once. `signature` vouches for all the other fields; `job_id` and `created_at` are given then.
    """

    operation: OperationName
    image: ImageSpec
    artifacts: ArtifactPolicy
    audit: Audit
    version: Version = "1.0"
    job_id: JobId | None = None
    created_at: Timestamp | None = None
    pool: PoolName = DEFAULT_POOL
    limit: Annotated[dict[LimitLabel, Places], Meta(max_length=8)] = {}
    requested_actions: tuple[str, ...] = ()
    capability_requirements: CapabilityRequirements = CapabilityRequirements()
    execution_policy: ExecutionPolicy = ExecutionPolicy()
    parameters: dict[str, Any] = {}
    signature: Signature | None = None

    def __post_init__(self) -> None:
        if self.signature is not None and (self.job_id is None or self.created_at is None):
            raise ValueError("a job with a signature has job_id and created_at, which are signed too")
        if is_deeper(self.parameters, MAX_PARAMETER_DEPTH):
            raise ValueError(f"parameters are nested deeper than {MAX_PARAMETER_DEPTH} levels")
        keep_utc(self, "created_at")
