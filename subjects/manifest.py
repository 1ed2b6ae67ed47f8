"""What an attempt was made of and what it made: enough for an auditor to run it again and compare.

It says what is known, and reads no disk for it: a checksum is there if the job gave or asked for one.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from subjects.codes import ErrorCode
from subjects.signature import Signature
from subjects.spec import JobId, JobSpec, OperationName, Sha256, Timestamp, Version, keep_utc
from subjects.states import State

MANIFEST_VERSION: Final = "1.0"

Size = Annotated[int, Meta(ge=0)]


class DiskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A disk image on the worker's host. Sizes are in bytes; what nobody has measured is left out."""

    path: str
    format: str | None = None
    file_bytes: Size | None = None
    virtual_size: Size | None = None
    sha256: Sha256 | None = None


class KeptObject(msgspec.Struct, frozen=True, kw_only=True):
    """An object in the object store of artifacts, by its name there."""

    name: str
    size: Size
    sha256: Sha256


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt: inputs, tools and command lines, outputs, times and how it ended.

    Secrets in `spec` and `commands` are replaced by `***`. `token` is the fencing token of the attempt's
    lease, and `artifacts` are its log and its report. `state` is what the job came to by it. `signature`
    vouches for all the other fields.
    """

    job_id: JobId
    attempt: Annotated[int, Meta(ge=1)]
    token: Annotated[int, Meta(ge=0)]
    operation: OperationName
    spec: JobSpec
    submitted_by: str
    worker_id: str
    host: str
    h2kbus_version: str
    submitted_at: Timestamp
    started_at: Timestamp
    ended_at: Timestamp
    state: State
    manifest_version: Version = MANIFEST_VERSION
    error_code: ErrorCode | None = None
    tools: dict[str, str] = {}
    commands: tuple[str, ...] = ()
    inputs: tuple[DiskFacts, ...] = ()
    outputs: tuple[DiskFacts, ...] = ()
    artifacts: tuple[KeptObject, ...] = ()
    signature: Signature | None = None

    def __post_init__(self) -> None:
        keep_utc(self, "submitted_at", "started_at", "ended_at")
