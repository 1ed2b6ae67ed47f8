"""How a record changes: one named function per move, each giving the next record and touching nothing.

Every function appends to the audit trail through the state table, so an illegal move cannot be built.
Writing the result is the store's business, by compare-and-set on the revision that was read.
"""

import datetime as dt
from typing import Any

import msgspec

from subjects.codes import ErrorCode, IllegalTransition
from subjects.record import JobRecord, Lease, ProgressSummary, Transition
from subjects.result import JobError, JobResult
from subjects.spec import JobSpec
from subjects.states import CLAIM_PATHS, State, check_move


def created(
    spec: JobSpec,
    *,
    job_id: str,
    submitter: str,
    lane: str,
    now: dt.datetime,
    by: str,
    parent: str | None = None,
) -> JobRecord:
    """The first record of a valid job: CREATED, VALIDATED and QUEUED in one write."""
    record = JobRecord(
        job_id=job_id,
        spec=spec,
        state=State.CREATED,
        submitted_by=submitter,
        pool=spec.pool,
        lane=lane,
        priority=spec.execution_policy.priority,
        created_at=spec.created_at or now,
        updated_at=now,
        parent=parent,
        transitions=(Transition(None, State.CREATED, now, by, f"submitted by {submitter}"),),
    )
    return _move(record, (State.VALIDATED, State.QUEUED), now, by)


def refused(
    spec: JobSpec | None, *, job_id: str, submitter: str, error: JobError, now: dt.datetime, by: str
) -> JobRecord:
    """The only record of an invalid job: CREATED and FAILED in one write."""
    record = JobRecord(
        job_id=job_id,
        spec=spec,
        state=State.CREATED,
        submitted_by=submitter,
        created_at=now,
        updated_at=now,
        transitions=(Transition(None, State.CREATED, now, by, f"submitted by {submitter}"),),
    )
    return failed(record, error, now=now, by=by)


def claimed(
    record: JobRecord, *, worker_id: str, revision: int, now: dt.datetime, reason: str | None = None
) -> JobRecord:
    """A worker takes the job at `revision`, which becomes the lease's fencing token.

    Taking it from another worker keeps that one's loss among the errors.
    """
    lost = JobError(code=ErrorCode.WORKER_LOST, message=f"{record.worker_id} went silent")
    return _move(
        record,
        CLAIM_PATHS.get(record.state, (State.ASSIGNED,)),
        now,
        worker_id,
        reason,
        attempt=record.attempt + 1,
        worker_id=worker_id,
        lease=Lease(worker_id=worker_id, token=revision),
        progress=None,
        errors=(*record.errors, lost) if record.state.leased else record.errors,
        next_attempt_at=None,
        pending_reason=None,
    )


def renewed(record: JobRecord, progress: ProgressSummary | None, *, now: dt.datetime) -> JobRecord:
    """The lease's holder shows that it lives; the first progress moves the job to PROGRESSING."""
    if progress is None:
        return msgspec.structs.replace(record, updated_at=now)
    path = (State.PROGRESSING,) if record.state is State.RUNNING else ()
    return _move(record, path, now, record.worker_id or "", progress=progress)


def completed(record: JobRecord, result: JobResult, *, now: dt.datetime) -> JobRecord:
    """The job ends with its work done and proven."""
    if result.status is not State.COMPLETED:
        raise IllegalTransition(f"a result that says {result.status} cannot make a job {State.COMPLETED}")
    return _move(
        record,
        (State.COMPLETED,),
        now,
        result.worker_id or "",
        result=result,
        lease=None,
        pending_reason=None,
    )


def failed(
    record: JobRecord, error: JobError, *, now: dt.datetime, by: str, result: JobResult | None = None
) -> JobRecord:
    """The job ends FAILED. `result` is built from the error when the attempt left none."""
    return _ended(record, State.FAILED, error, now, by, result)


def cancelled(
    record: JobRecord, error: JobError, *, now: dt.datetime, by: str, result: JobResult | None = None
) -> JobRecord:
    """The job ends because somebody asked for it."""
    return _ended(record, State.CANCELLED, error, now, by, result)


def retrying(
    record: JobRecord, error: JobError, *, now: dt.datetime, by: str, next_attempt_at: dt.datetime
) -> JobRecord:
    """The attempt failed in a way that another attempt may mend."""
    return _move(
        record,
        (State.RETRYING,),
        now,
        by,
        f"{error.code}: {error.message}",
        errors=(*record.errors, error),
        lease=None,
        worker_id=None,
        progress=None,
        next_attempt_at=next_attempt_at,
        pending_reason=f"waits for attempt {record.attempt + 1} after {error.code}",
    )


def handed_back(record: JobRecord, error: JobError, *, now: dt.datetime, by: str) -> JobRecord:
    """A draining worker returns the job; the attempt that it began is not held against the job."""
    returned = retrying(record, error, now=now, by=by, next_attempt_at=now)
    return msgspec.structs.replace(
        returned,
        attempt=record.attempt - 1,
        errors=record.errors,
        pending_reason=f"waits for attempt {record.attempt} after {error.code}",
    )


def cancel_requested(record: JobRecord, *, now: dt.datetime) -> JobRecord:
    """Ask the lease's holder to stop: its next renewal fails and it reads this."""
    return msgspec.structs.replace(record, cancel_requested=True, updated_at=now)


def pending(record: JobRecord, reason: str | None, *, now: dt.datetime) -> JobRecord:
    """Say why a queued job waits, or that nothing is known to hold it up."""
    return msgspec.structs.replace(record, pending_reason=reason, updated_at=now)


def same_job(record: JobRecord, spec: JobSpec) -> bool:
    """Whether a second submission means the same job. When it was created is not part of that."""
    if record.spec is None:
        return False
    other = msgspec.structs.replace(spec, job_id=record.spec.job_id, created_at=record.spec.created_at)
    return record.spec == other


def _ended(
    record: JobRecord, state: State, error: JobError, now: dt.datetime, by: str, result: JobResult | None
) -> JobRecord:
    result = result or JobResult(
        job_id=record.job_id,
        status=state,
        completed_at=now,
        worker_id=record.worker_id,
        retry_attempt=max(record.attempt - 1, 0),
        error=error,
    )
    return _move(
        record,
        (state,),
        now,
        by,
        f"{error.code}: {error.message}",
        errors=(*record.errors, error),
        result=result,
        lease=None,
        next_attempt_at=None,
        pending_reason=None,
    )


def _move(
    record: JobRecord,
    path: tuple[State, ...],
    now: dt.datetime,
    by: str,
    reason: str | None = None,
    **changes: Any,
) -> JobRecord:
    """Walk `path` through the table; the reason belongs to the first step."""
    trail = list(record.transitions)
    state = record.state
    for step in path:
        check_move(state, step)
        trail.append(Transition(state, step, now, by, reason))
        state, reason = step, None
    return msgspec.structs.replace(record, state=state, transitions=tuple(trail), updated_at=now, **changes)
