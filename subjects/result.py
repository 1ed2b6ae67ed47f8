"""What one job came to: JobResult of the protocol, with its outputs, metrics and error."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from subjects.codes import ErrorCode
from subjects.spec import JobId, Sha256, Timestamp, keep_utc
from subjects.states import State


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute paths on the worker's host; `logs` may also name an object in the artifact store."""

    fixed_image: str | None = None
    report: str | None = None
    logs: str | None = None
    intermediates: tuple[str, ...] = ()


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds are wall time; bytes are what the operation's tools read and wrote."""

    execution_seconds: Annotated[float, Meta(ge=0)] = 0.0
    phase_seconds: dict[str, float] = {}
    disk_read_bytes: Annotated[int, Meta(ge=0)] = 0
    disk_write_bytes: Annotated[int, Meta(ge=0)] = 0


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job or an attempt ended without success."""

    code: ErrorCode
    message: str
    phase: str | None = None
    details: dict[str, Any] = {}
    stack_trace: str | None = None


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a job. `retry_attempt` counts from 0 for the first attempt.

    `manifest_sha256` is the digest of the manifest of the attempt that ended the job, if one is kept.
    """

    job_id: JobId
    status: State
    completed_at: Timestamp
    worker_id: str | None = None
    retry_attempt: Annotated[int, Meta(ge=0)] = 0
    outputs: Outputs = Outputs()
    metrics: Metrics = Metrics()
    error: JobError | None = None
    warnings: tuple[str, ...] = ()
    summary: dict[str, Any] = {}
    manifest_sha256: Sha256 | None = None

    def __post_init__(self) -> None:
        keep_utc(self, "completed_at")
