"""The whole truth about one job: the value under its key in the jobs bucket."""

from typing import Annotated

import msgspec
from msgspec import Meta

from subjects.lease import LEASE_SECONDS, MIN_LEASE_SECONDS, Lease
from subjects.result import JobError, JobResult
from subjects.spec import DEFAULT_POOL, JobId, JobSpec, PoolName, Priority, Timestamp, keep_utc
from subjects.states import State

Traceparent = Annotated[str, Meta(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$(?!\n)")]
"""A W3C trace context: the trace and the step that what happens next belongs to."""


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
    `publishing` says that an attempt may have begun to give its outputs their names: should it be lost,
    the next worker first finds out how far it came. `deadline_exceeded` asks the holder to stop.
    `spec_bytes` is the size of the submission, which counts against its submitter's quota.
    `traceparent` is there if somebody traces the job.
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
    deadline_exceeded: bool = False
    publishing: bool = False
    parent: JobId | None = None
    spec_bytes: Annotated[int, Meta(ge=0)] = 0
    traceparent: Traceparent | None = None

    def __post_init__(self) -> None:
        keep_utc(self, "created_at", "updated_at", "next_attempt_at")


class PolicyGlimpse(msgspec.Struct, frozen=True):
    """The part of a job's policy that decides when it may go to its lane."""

    priority: int = 5
    timeout_seconds: int = 7200
    deadline: Timestamp | None = None
    not_before: Timestamp | None = None


class SpecGlimpse(msgspec.Struct, frozen=True):
    """The part of a job's specification that decides when it may go to its lane."""

    execution_policy: PolicyGlimpse = PolicyGlimpse()
    limit: dict[str, int] = {}
    operation: str = ""


class JobGlimpse(msgspec.Struct, frozen=True):
    """What a scheduler keeps in mind of every job: a part of its record, cheap to read and to hold."""

    job_id: JobId
    state: State
    lease: Lease | None = None
    deadline_exceeded: bool = False
    spec: SpecGlimpse | None = None

    @property
    def policy(self) -> PolicyGlimpse:
        return self.spec.execution_policy if self.spec else PolicyGlimpse()

    @property
    def limit(self) -> dict[str, int]:
        return self.spec.limit if self.spec else {}

    @property
    def operation(self) -> str:
        return self.spec.operation if self.spec else ""


class OwnerGlimpse(msgspec.Struct, frozen=True):
    """What a scheduler reads of a record to know how much its submitter has on the bus."""

    job_id: JobId
    state: State
    submitted_by: str
    spec_bytes: int = 0


class LaneMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in a lane: the record and its revision, so that the first claim needs no read.

    The record may have changed since; the claim's compare-and-set finds out. `lease_seconds` is how long
    a claim of it lasts.
    """

    revision: Annotated[int, Meta(ge=1)]
    record: JobRecord
    lease_seconds: Annotated[float, Meta(ge=MIN_LEASE_SECONDS, le=3600)] = LEASE_SECONDS


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
