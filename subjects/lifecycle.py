"""How a record changes: one named function per move, each giving the next record and touching nothing.

Every function appends to the audit trail through the state table, so an illegal move cannot be built.
Writing the result is the store's business, by compare-and-set on the revision that was read.
"""

import datetime as dt
from typing import Any

import msgspec

from subjects.codes import ErrorCode, IllegalTransition
from subjects.identity import is_own_name
from subjects.lease import LEASE_SECONDS, Lease
from subjects.record import JobRecord, ProgressSummary, Transition
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
    waits: str | None = None,
) -> JobRecord:
    """The first record of a valid job: CREATED, VALIDATED and QUEUED in one write.

    With a reason why it `waits`, it stays VALIDATED.
    """
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
        transitions=(Transition(None, State.CREATED, now, by, _origin(submitter, spec)),),
    )
    path = (State.VALIDATED,) if waits else (State.VALIDATED, State.QUEUED)
    return _move(record, path, now, by, pending_reason=waits)


def queued(record: JobRecord, *, now: dt.datetime, by: str, unserved: str | None = None) -> JobRecord:
    """What the job waited for has come: it may go to its lane, also if no worker takes it from there yet."""
    return _move(record, (State.QUEUED,), now, by, pending_reason=unserved)


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
        transitions=(Transition(None, State.CREATED, now, by, _origin(submitter, spec)),),
    )
    return failed(record, error, now=now, by=by)


def claimed(
    record: JobRecord,
    *,
    worker_id: str,
    revision: int,
    now: dt.datetime,
    lease_seconds: float = LEASE_SECONDS,
) -> JobRecord:
    """A worker takes the job at `revision`, which becomes the lease's fencing token."""
    return _move(
        record,
        CLAIM_PATHS.get(record.state, (State.ASSIGNED,)),
        now,
        worker_id,
        attempt=record.attempt + 1,
        worker_id=worker_id,
        lease=Lease(worker_id=worker_id, token=revision, seconds=lease_seconds),
        progress=None,
        next_attempt_at=None,
        pending_reason=None,
    )


def renewed(record: JobRecord, progress: ProgressSummary | None, *, now: dt.datetime) -> JobRecord:
    """The lease's holder shows that it lives; the first progress moves the job to PROGRESSING."""
    if progress is None:
        return msgspec.structs.replace(record, updated_at=now)
    path = (State.PROGRESSING,) if record.state is State.RUNNING else ()
    return _move(record, path, now, record.worker_id or "", progress=progress)


def publishing(record: JobRecord) -> JobRecord:
    """The holder is about to give its outputs their names. Only a worker that settles it takes this back."""
    return msgspec.structs.replace(record, publishing=True)


def taken_back(record: JobRecord, error: JobError, *, now: dt.datetime, by: str) -> JobRecord:
    """A scheduler takes the job from a holder that went silent or that does not stop.

    It is given out again if another attempt is allowed, and also if outputs may have been published:
    only a worker can find that out.
    """
    cause = stop_cause(record)
    if record.publishing or (may_run_again(record) and cause is None):
        again = retrying(record, error, now=now, by=by, next_attempt_at=now)
        return msgspec.structs.replace(again, publishing=record.publishing)
    return stopped(record, cause, now=now, by=by) if cause else failed(record, error, now=now, by=by)


def may_run_again(record: JobRecord) -> bool:
    """Whether the policy allows another attempt after the record's last one was lost or failed."""
    policy = record.spec.execution_policy if record.spec else None
    return policy is not None and policy.idempotent and record.attempt <= policy.retry_count


def is_granted(record: JobRecord) -> bool:
    """Whether the record's attempt may execute. One that may not only settles what the last one left."""
    policy = record.spec.execution_policy if record.spec else None
    return policy is not None and record.attempt <= (policy.retry_count + 1 if policy.idempotent else 1)


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
        publishing=False,
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
        publishing=False,
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


def stop_requested(record: JobRecord, code: ErrorCode, *, now: dt.datetime) -> JobRecord:
    """Ask whoever holds the job to stop: the holder's next renewal fails, and it reads this."""
    changes = {"deadline_exceeded" if code is ErrorCode.DEADLINE_EXCEEDED else "cancel_requested": True}
    return msgspec.structs.replace(record, updated_at=now, **changes)


def stop_cause(record: JobRecord) -> JobError | None:
    """Why the job's holder is asked to stop, if it is."""
    if record.cancel_requested:
        return JobError(code=ErrorCode.CANCELLED, message="cancelled on request")
    if record.deadline_exceeded:
        return JobError(code=ErrorCode.DEADLINE_EXCEEDED, message="the job's deadline has passed")
    return None


def stopped(record: JobRecord, cause: JobError, *, now: dt.datetime, by: str) -> JobRecord:
    """The job ends because of `stop_cause`: CANCELLED on request, FAILED at its deadline."""
    end = cancelled if cause.code is ErrorCode.CANCELLED else failed
    return end(record, cause, now=now, by=by)


def pending(record: JobRecord, reason: str | None, *, now: dt.datetime) -> JobRecord:
    """Say why a queued job waits, or that nothing is known to hold it up."""
    return msgspec.structs.replace(record, pending_reason=reason, updated_at=now)


def same_job(record: JobRecord, spec: JobSpec) -> bool:
    """Whether a second submission means the same job.

    When it was created is not part of that, nor when it was signed; whose key signed it is.
    """
    known = record.spec
    if known is None or _signer(known) != _signer(spec):
        return False
    other = msgspec.structs.replace(
        spec, job_id=known.job_id, created_at=known.created_at, signature=known.signature
    )
    return known == other


def _signer(spec: JobSpec) -> str | None:
    return spec.signature.key if spec.signature else None


def _origin(submitter: str, spec: JobSpec | None) -> str:
    """Who submitted the job, and in whose name if that is another one."""
    requested_by = spec.audit.requested_by if spec else submitter
    own = is_own_name(submitter, requested_by)
    return f"submitted by {submitter}" + ("" if own else f" in the name of {requested_by}")


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
        publishing=False,
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
