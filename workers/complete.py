"""Settle an attempt: the record first, then the last event, then the acknowledgement.

Each step is repeated until it is known to have happened, or until the lease is lost; a crash between
two of them is finished by whoever gets the message next.
"""

import contextlib
import datetime as dt
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import msgspec

from h2kbus.connection import Connection
from h2kbus.errors import CODES, BusError, ErrorCode, RevisionConflict
from h2kbus.journal import publish_event
from h2kbus.redaction import PLAIN, Redactor
from h2kbus.slots import Slot
from h2kbus.store import Entry, JobStore
from h2kbus.telemetry import AttemptEnded, LeaseLost, Observer, moved, operation_of, unobserved
from subjects.events import milestone
from subjects.lifecycle import cancelled, completed, failed, handed_back, may_run_again, retrying
from subjects.record import JobRecord
from subjects.result import JobResult, Outputs
from subjects.states import State
from subjects.topology import Topology
from workers import bounds
from workers.execute import Outcome
from workers.lease import HeldLease

log = logging.getLogger("h2kbus.worker")

FIRST_BACKOFF_SECONDS: Final = 2.0
LONGEST_BACKOFF_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.5


class Settlement:
    """Settles attempts for one worker."""

    def __init__(self, connection: Connection, topology: Topology, observe: Observer = unobserved) -> None:
        self._observe = observe
        self._connection = connection
        self._topology = topology
        self._store = JobStore(connection, topology)

    async def settle(self, lease: HeldLease, outcome: Outcome, slot: Slot) -> None:
        """Write what the attempt came to, then tell of it. A cancelled worker still settles what it did.

        The slot is given back once the record says it: the next job may start while the rest is told.
        """
        with anyio.move_on_after(lease.terms.seconds, shield=True):
            # The last word of progress may be lost; the outcome must not wait for it.
            with contextlib.suppress(BusError):
                await lease.send_progress()
            await lease.close()
            slot.end_soon()
            entry = await self._write(lease, outcome)
            slot.give_back()
            self._count(lease, outcome, entry)
            if entry is not None:
                await self._conclude(lease, entry.record)
                await self._tell(lease, entry)
            return
        log.error("job %s: the bus did not take its outcome; it will be redelivered", lease.job_id)

    def _count(self, lease: HeldLease, outcome: Outcome, entry: Entry | None) -> None:
        if self._observe is unobserved:
            return
        operation, error, tools = operation_of(lease.entry.record), outcome.error, lease.tools
        if entry is None:
            self._observe(LeaseLost(operation))
        else:
            self._observe(moved(entry.record, error.code if error else ""))
        ended = AttemptEnded(
            operation=operation,
            state=entry.record.state if entry else "LOST",
            seconds=outcome.metrics.execution_seconds,
            phase_seconds=outcome.metrics.phase_seconds,
            read_bytes=tools.read_bytes if tools else 0,
            written_bytes=tools.written_bytes if tools else 0,
        )
        self._observe(ended)

    async def _write(self, lease: HeldLease, outcome: Outcome) -> Entry | None:
        """Swap in the next record; None when the job is no longer ours, and nothing may be touched."""
        entry, now = lease.entry, dt.datetime.now(dt.UTC)
        while True:
            following = next_record(entry.record, outcome, now)
            if following is None:
                log.warning("job %s: lease lost, nothing more is written", lease.job_id)
                return None
            try:
                return await self._store.swap(following, entry.revision)
            except RevisionConflict:
                pass
            except BusError as error:
                log.warning("job %s: its outcome is not written yet: %s", lease.job_id, error)
                await anyio.sleep(PAUSE_SECONDS)
            found = await self._found(lease.job_id)
            if found is None or found.record.lease != entry.record.lease:
                return await self._taken(lease, following, found)
            entry = found

    async def _taken(self, lease: HeldLease, following: JobRecord, found: Entry | None) -> Entry | None:
        """We hold the job no more: because our outcome was written and only the answer lost, or truly.

        While nobody has it, the next attempt may adopt what was published.
        """
        if found is not None and following.result is not None and found.record.result == following.result:
            return found
        log.warning("job %s was taken back before its outcome was written", lease.job_id)
        waits = found is not None and not found.record.state.terminal and not found.record.state.leased
        if lease.publication is not None and not waits:
            await lease.publication.withdraw()
        return None

    async def _conclude(self, lease: HeldLease, record: JobRecord) -> None:
        """What was published stands exactly if the job has COMPLETED by it."""
        if lease.publication is None:
            return
        if record.state is State.COMPLETED:
            await lease.publication.keep()
        else:
            await lease.publication.withdraw()

    async def _found(self, job_id: str) -> Entry | None:
        while True:
            try:
                return await self._store.find(job_id)
            except BusError as error:
                log.warning("job %s cannot be read: %s", job_id, error)
                await anyio.sleep(PAUSE_SECONDS)

    async def _tell(self, lease: HeldLease, entry: Entry) -> None:
        record = entry.record

        async def publish() -> None:
            await publish_event(self._connection, self._topology, milestone(record, entry.revision))

        async def answer() -> None:
            # Should an acknowledgement get lost, the redelivered message finds the job at its end.
            if record.state.terminal:
                await lease.delivery.ack_unconfirmed()
            else:
                await lease.delivery.nak(delay_of(record))

        await _insist(publish)
        await _insist(answer)


async def _insist(step: Callable[[], Awaitable[None]]) -> None:
    """Repeat a step until the bus has taken it; the caller holds the deadline."""
    while True:
        try:
            await step()
        except BusError as error:
            log.warning("the bus did not take a step, trying again: %s", error)
            await anyio.sleep(PAUSE_SECONDS)
        else:
            return


def next_record(record: JobRecord, outcome: Outcome, now: dt.datetime) -> JobRecord | None:
    """What the record becomes; None when the lease is lost."""
    by, error = record.worker_id or "", outcome.error
    if error is None:
        return completed(record, job_result(record, outcome, State.COMPLETED, now), now=now)
    if outcome.stopped and error.code is ErrorCode.LEASE_LOST:
        return None
    if outcome.stopped and error.code is ErrorCode.CANCELLED:
        result = job_result(record, outcome, State.CANCELLED, now)
        return cancelled(record, error, now=now, by=by, result=result)
    if outcome.stopped and error.code is ErrorCode.DRAINED and may_be_handed_back(record):
        return handed_back(record, error, now=now, by=by)
    if CODES[error.code].retryable and may_run_again(record):
        return retrying(record, error, now=now, by=by, next_attempt_at=now + backoff(record.attempt))
    return failed(record, error, now=now, by=by, result=job_result(record, outcome, State.FAILED, now))


def job_result(record: JobRecord, outcome: Outcome, state: State, now: dt.datetime) -> JobResult:
    """The attempt's outcome as the job's result."""
    done = outcome.result
    redactor = Redactor.of(record.spec.parameters) if record.spec else PLAIN
    said = (*(done.warnings if done else ()), *outcome.warnings)
    result = JobResult(
        job_id=record.job_id,
        status=state,
        completed_at=now,
        worker_id=record.worker_id,
        retry_attempt=record.attempt - 1,
        metrics=outcome.metrics,
        error=outcome.error,
        warnings=bounds.warnings(said, redactor),
        manifest_sha256=outcome.manifest_sha256,
    )
    if done is None:
        logs = str(outcome.log_file) if outcome.log_file else None
        return msgspec.structs.replace(result, outputs=Outputs(logs=logs))
    return msgspec.structs.replace(
        result,
        outputs=done.outputs,
        summary=bounds.facts(done.summary, redactor),
    )


def may_be_handed_back(record: JobRecord) -> bool:
    """A job that must not start twice is not given to another worker once it has begun."""
    return record.spec is not None and record.spec.execution_policy.idempotent


def backoff(attempt: int) -> dt.timedelta:
    """Exponential with jitter: 2 s doubled for each attempt so far, at most 60 s, times 0.5 to 1.5."""
    seconds = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
    return dt.timedelta(seconds=seconds * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load only


def delay_of(record: JobRecord) -> float:
    """Seconds until the next attempt, as this worker has just decided them."""
    if record.next_attempt_at is None:
        return 0.0
    return max((record.next_attempt_at - record.updated_at).total_seconds(), 0.0)
