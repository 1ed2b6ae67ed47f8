"""The whole truth about one job: the value under its key in the jobs bucket."""

from typing import Annotated

import msgspec
from msgspec import Meta

from subjects.result import JobError, JobResult
from subjects.spec import DEFAULT_POOL, JobId, JobSpec, PoolName, Priority, Timestamp, keep_utc
from subjects.states import State


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Who may work on the job now.

    `token` is the revision of the record that the claim replaced. A compare-and-set on one revision
    succeeds once, so tokens are unique and grow with every claim: they fence out stale workers.
    """

    worker_id: str
    token: Annotated[int, Meta(ge=0)]


class Transition(msgspec.Struct, frozen=True):
    """One line of the audit trail. `before` is None for the job's creation."""

    before: State | None = msgspec.field(name="from")
    to: State
    at: Timestamp
    by: str
    reason: str | None = None


class ProgressSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The last progress that was written to the record, at most a few seconds behind the events."""

    phase: str
    progress_percent: Annotated[float, Meta(ge=0, le=100)]
    message: str = ""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """State, lease, audit trail, progress and result of one job.

    `spec` is None only for a job that was refused because its message could not be read as one.
    `errors` keeps the failure of every attempt; `result` exists exactly in the terminal states.
    """

    job_id: JobId
    state: State
    submitted_by: str
    created_at: Timestamp
    updated_at: Timestamp
    spec: JobSpec | None = None
    pool: PoolName = DEFAULT_POOL
    lane: str = "any"
    priority: Priority = 5
    attempt: Annotated[int, Meta(ge=0)] = 0
    worker_id: str | None = None
    lease: Lease | None = None
    transitions: tuple[Transition, ...] = ()
    progress: ProgressSummary | None = None
    result: JobResult | None = None
    errors: tuple[JobError, ...] = ()
    next_attempt_at: Timestamp | None = None
    pending_reason: str | None = None
    cancel_requested: bool = False
    parent: JobId | None = None

    def __post_init__(self) -> None:
        keep_utc(self, "created_at", "updated_at", "next_attempt_at")


class LaneMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in a lane: the record and its revision, so that the first claim needs no read.

    The record may have changed since; the claim's compare-and-set finds out.
    """

    revision: Annotated[int, Meta(ge=1)]
    record: JobRecord


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that nobody could handle, kept with the reason.

    `data` is the original as base64, cut at 512 KiB so that the letter itself fits NATS's payload.
    """

    subject: str
    reason: str
    message: str
    at: Timestamp
    by: str
    data: bytes

    def __post_init__(self) -> None:
        keep_utc(self, "at")
