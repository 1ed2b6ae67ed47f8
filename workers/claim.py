"""From a delivered message to a held lease, by one compare-and-set; everything else is said no to here."""

import datetime as dt
import enum
import logging
from typing import Final

from h2kbus.connection import Connection
from h2kbus.errors import BusError, ErrorCode, InvalidMessage, RevisionConflict
from h2kbus.journal import bury, publish_event
from h2kbus.pull import Delivery
from h2kbus.store import Entry, JobStore
from subjects.codec import decode
from subjects.events import milestone
from subjects.lifecycle import cancelled, claimed, failed, pending
from subjects.record import JobRecord, LaneMessage
from subjects.result import JobError
from subjects.states import State
from subjects.topology import ACK_WAIT_SECONDS, Topology
from workers.lease import HeldLease
from workers.room import shortage

log = logging.getLogger("h2kbus.worker")

PASS_ON_SECONDS: Final = 5.0
"""A job that this host has no room for comes again after this long, to whoever is free then."""
CLAIM_TRIES: Final = 8
"""Lost races before the message is given back; each one means that somebody else moved the job on."""


class Decision(enum.Enum):
    """What a delivered message means, given its job's record."""

    CLAIM = enum.auto()
    TAKE_OVER = enum.auto()
    GIVE_UP = enum.auto()
    CANCEL = enum.auto()
    LEAVE = enum.auto()
    DROP = enum.auto()


_TAKING: Final = frozenset({Decision.CLAIM, Decision.TAKE_OVER})


def decide(record: JobRecord, *, redelivered: bool) -> Decision:
    """Read a record's state as a decision. `redelivered` is JetStream's word that a holder went silent."""
    if record.state.terminal:
        return Decision.DROP
    if record.cancel_requested and (redelivered or not record.state.leased):
        return Decision.CANCEL
    if not record.state.leased:
        return Decision.CLAIM
    if not redelivered:
        return Decision.LEAVE
    return Decision.TAKE_OVER if may_run_again(record) else Decision.GIVE_UP


def may_run_again(record: JobRecord) -> bool:
    """Whether the policy allows another attempt after one that was lost or failed."""
    policy = record.spec.execution_policy if record.spec else None
    return policy is not None and policy.idempotent and record.attempt <= policy.retry_count


class Claims:
    """Claims jobs for one worker."""

    def __init__(self, connection: Connection, topology: Topology, worker_id: str, memory_gb: float) -> None:
        self._connection = connection
        self._topology = topology
        self._store = JobStore(connection, topology)
        self._worker_id = worker_id
        self._memory_gb = memory_gb

    async def claim(self, delivery: Delivery) -> HeldLease | None:
        """Take the job, or answer for the message in another way and return None."""
        try:
            message = decode(LaneMessage, delivery.data)
        except InvalidMessage as error:
            await self._bury(delivery, str(error))
            return None
        entry: Entry | None = Entry(message.record, message.revision)
        if delivery.times_delivered > 1:
            entry = await self._store.find(message.record.job_id)
        for _ in range(CLAIM_TRIES):
            if entry is None:
                await delivery.ack()
                return None
            try:
                return await self._act(entry, delivery)
            except RevisionConflict:
                entry = await self._store.find(entry.record.job_id)
        await delivery.nak(1.0)
        return None

    async def _act(self, entry: Entry, delivery: Delivery) -> HeldLease | None:
        """One try with one reading of the record. Raises RevisionConflict when it is out of date."""
        decision = decide(entry.record, redelivered=delivery.times_delivered > 1)
        if decision is Decision.LEAVE:
            await delivery.nak(ACK_WAIT_SECONDS)
            return None
        if decision not in _TAKING:
            await self._end(entry, decision, delivery)
            return None
        lack = await shortage(entry.record.spec, self._memory_gb) if entry.record.spec else None
        if lack is not None:
            await self._pass_on(entry, delivery, f"{self._worker_id} cannot take the job: {lack}")
            return None
        lost = f"{ErrorCode.WORKER_LOST}: {entry.record.worker_id} went silent"
        return await self._take(entry, delivery, lost if decision is Decision.TAKE_OVER else None)

    async def _pass_on(self, entry: Entry, delivery: Delivery, reason: str) -> None:
        """Leave the job to a worker with more room, and say in its record why it waits."""
        if entry.record.state is State.QUEUED and entry.record.pending_reason != reason:
            now = dt.datetime.now(dt.UTC)
            await self._store.swap(pending(entry.record, reason, now=now), entry.revision)
        await delivery.nak(PASS_ON_SECONDS)

    async def _take(self, entry: Entry, delivery: Delivery, reason: str | None) -> HeldLease:
        record = claimed(
            entry.record,
            worker_id=self._worker_id,
            revision=entry.revision,
            now=dt.datetime.now(dt.UTC),
            reason=reason,
        )
        held = await self._swap(record, entry.revision)
        return HeldLease(self._connection, self._topology, self._store, held, delivery)

    async def _swap(self, record: JobRecord, revision: int) -> Entry:
        """A claim whose answer got lost may have been written: read before giving up."""
        try:
            return await self._store.swap(record, revision)
        except RevisionConflict:
            raise
        except BusError:
            found = await self._store.find(record.job_id)
            if found is not None and found.record.lease == record.lease:
                return found
            raise

    async def _end(self, entry: Entry, decision: Decision, delivery: Delivery) -> None:
        """The job is over: see that its record and its last event say so, then remove the message."""
        now, record = dt.datetime.now(dt.UTC), entry.record
        if decision is Decision.GIVE_UP:
            lost = JobError(
                code=ErrorCode.WORKER_LOST, message=f"{record.worker_id} went silent; no attempt is left"
            )
            entry = await self._store.swap(failed(record, lost, now=now, by=self._worker_id), entry.revision)
        if decision is Decision.CANCEL:
            error = JobError(code=ErrorCode.CANCELLED, message="cancelled on request")
            entry = await self._store.swap(
                cancelled(record, error, now=now, by=self._worker_id), entry.revision
            )
        await self._tell_end(entry)
        await delivery.ack()

    async def _tell_end(self, entry: Entry) -> None:
        """Publish the last event unless it is there: its writer may have died before it could."""
        job_id = entry.record.job_id
        last = await self._connection.get_last(
            self._topology.progress_stream, self._topology.grammar.progress(job_id)
        )
        event = milestone(entry.record, entry.revision)
        if last is None or b'"state":"%s"' % event.state.encode() not in last.data:
            await publish_event(self._connection, self._topology, event)

    async def _bury(self, delivery: Delivery, words: str) -> None:
        await bury(
            self._connection,
            self._topology,
            delivery,
            reason="invalid-job",
            message=words,
            by=self._worker_id,
        )
        await delivery.ack()
