"""Progress events: what any NATS client reads on a job's own subject."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from subjects.record import JobRecord
from subjects.spec import JobId, Timestamp, keep_utc
from subjects.states import State

SEQ_STRIDE = 10_000
"""Room for events under one revision; a lease is renewed long before a worker can use it up."""


def event_seq(revision: int, nth: int) -> int:
    """Order events without a counter of their own: by the record's revision, then by place under it.

    Every actor owns the last revision it wrote, so numbers only grow along a job's history, and a
    stale worker's event sorts before everything that its successor says. `nth` is 0 to 9,999.
    """
    return revision * SEQ_STRIDE + min(nth, SEQ_STRIDE - 1)


class ProgressEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to a job. The last event of a job carries its terminal state.

    `seq` grows strictly along a job's history; it has gaps. Ignore an event whose `seq` is not above
    the highest one seen: it comes from a worker that lost the job. `progress_percent` is of the whole job,
    `phase_percent` of the phase alone, where it is known. `eta_seconds` is an estimate.
    """

    job_id: JobId
    seq: Annotated[int, Meta(ge=0)]
    timestamp: Timestamp
    state: State
    phase: str
    progress_percent: Annotated[float, Meta(ge=0, le=100)]
    message: str = ""
    attempt: Annotated[int, Meta(ge=0)] = 0
    worker_id: str | None = None
    bytes_done: Annotated[int, Meta(ge=0)] | None = None
    bytes_total: Annotated[int, Meta(ge=0)] | None = None
    phase_percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    eta_seconds: Annotated[float, Meta(ge=0)] | None = None
    details: dict[str, Any] = {}

    def __post_init__(self) -> None:
        keep_utc(self, "timestamp")


def milestone(record: JobRecord, revision: int, message: str = "") -> ProgressEvent:
    """The event that tells of a record as it was written at `revision`.

    Whoever builds it from the same entry builds the same event, so sending it again is harmless.
    """
    error = record.result.error if record.result else None
    last = record.progress.progress_percent if record.progress else 0.0
    return ProgressEvent(
        job_id=record.job_id,
        seq=event_seq(revision, 0),
        timestamp=record.updated_at,
        state=record.state,
        phase=record.state.lower(),
        progress_percent=100.0 if record.state is State.COMPLETED else last,
        message=message or (error.message if error else ""),
        attempt=record.attempt,
        worker_id=record.worker_id,
        details={"code": error.code} if error else {},
    )
