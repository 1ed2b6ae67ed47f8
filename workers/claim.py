"""From a delivered message to a held lease, by one compare-and-set; everything else is said no to here."""

import datetime as dt
import enum
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage, RevisionConflict
from h2kbus.journal import bury, publish_event
from h2kbus.pull import Delivery
from h2kbus.store import Entry, JobStore
from h2kbus.telemetry import DeadLettered, Observer, moved, unobserved
from subjects.codec import decode
from subjects.events import milestone
from subjects.fleet import WorkerCapabilities
from subjects.lifecycle import claimed, failed, pending, stop_cause, stopped
from subjects.permissions import INVALID_JOB
from subjects.record import JobRecord, LaneMessage
from subjects.result import JobError
from subjects.states import CLAIM_PATHS, State
from subjects.topology import RECORD_AGE_SECONDS, Topology
from workers.lease import HeldLease
from workers.publication import clear_away
from workers.room import shortage
from workers.site import Site
from workers.trust import Trust

log = logging.getLogger("h2kbus.worker")

HASTY_SECONDS: Final = 0.05
HASTY_DELIVERIES: Final = 100
PASS_ON_SECONDS: Final = 5.0
"""A job that this host has no room for comes again after this long, to whoever is free then; its first
deliveries follow each other faster, so that it soon finds the idle worker that has the room."""
LOOKS_PER_LEASE: Final = 12
"""How often a message comes back while its job is in other hands."""
FORGOTTEN_SECONDS: Final = RECORD_AGE_SECONDS - 86_400
"""A message this old without a record is of a job that ended: what waits has its record written anew."""
CLAIM_TRIES: Final = 8
"""Lost races before the message is given back; each one means that somebody else moved the job on."""


class Decision(enum.Enum):
    """What a delivered message means, given its job's record."""

    CLAIM = enum.auto()
    CANCEL = enum.auto()
    LEAVE = enum.auto()
    DROP = enum.auto()


def decide(record: JobRecord) -> Decision:
    """Read a record's state as a decision.

    A job in other hands is left there, however often its message is delivered: a redelivery does not
    tell whether its holder lives. Schedulers find that out, and take the job back.
    """
    if record.state.terminal:
        return Decision.DROP
    if record.state.leased or record.state not in CLAIM_PATHS:
        return Decision.LEAVE
    # Where outputs may have been published, an attempt finds out before the job can be cancelled.
    return Decision.CANCEL if stop_cause(record) and not record.publishing else Decision.CLAIM


class Claims:
    """Claims jobs for one worker."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        describe: Callable[[], WorkerCapabilities],
        on_pass: Callable[[str], None],
        site: Site,
        trust: Trust | None = None,
        *,
        observe: Observer = unobserved,
    ) -> None:
        """`describe` gives the worker's profile; `on_pass` hears of a consumer whose job was passed on.

        Without `trust` nobody's signature is asked for.
        """
        self._site = site
        self._observe = observe
        self._connection = connection
        self._topology = topology
        self._store = JobStore(connection, topology)
        self._describe = describe
        self._on_pass = on_pass
        self._trust = trust
        self._worker_id = describe().worker_id

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
            if entry is None and _outlived_its_record(delivery):
                await self._bury(delivery, "its record has expired, so it ended long ago")
                return None
            try:
                entry = entry or await self._restored(message.record, delivery)
                return await self._act(entry, delivery, message.lease_seconds)
            except RevisionConflict:
                entry = await self._store.find(message.record.job_id)
        await delivery.nak(1.0)
        return None

    async def _restored(self, record: JobRecord, delivery: Delivery) -> Entry:
        """The record has vanished with its bucket: make it anew from what the lane has kept of it.

        Whether an attempt was begun is not known then, unless this is the first delivery.
        """
        log.error("job %s has no record any more; it is restored from its lane's message", record.job_id)
        begun = delivery.times_delivered > 1 or record.attempt > 0
        if begun and not record.state.terminal:
            # Whoever claims it finds out first whether that attempt has published something.
            policy = record.spec.execution_policy if record.spec else None
            spent = 1 if policy is not None and not policy.idempotent else 0
            record = msgspec.structs.replace(record, publishing=True, attempt=max(record.attempt, spent))
        return await self._store.create(record)

    async def _act(self, entry: Entry, delivery: Delivery, lease_seconds: float) -> HeldLease | None:
        """One try with one reading of the record. Raises RevisionConflict when it is out of date."""
        decision = decide(entry.record)
        if decision is Decision.LEAVE:
            await delivery.nak(lease_seconds / LOOKS_PER_LEASE)
            return None
        # Before anything of the job is acted on, what an ended one left behind included.
        objection = self._trust.objection(entry.record, delivery.stored_at) if self._trust else None
        if decision is not Decision.CLAIM or objection is not None:
            await self._end(entry, decision, delivery, objection)
            return None
        spec = entry.record.spec
        lack = await shortage(spec, self._describe(), self._site) if spec else None
        if lack is not None:
            await self._pass_on(entry, delivery, f"{self._worker_id} {lack}")
            return None
        return await self._take(entry, delivery, lease_seconds)

    async def _pass_on(self, entry: Entry, delivery: Delivery, reason: str) -> None:
        """Leave the job to a worker with more room; its record says why it waits, once."""
        if entry.record.state is State.QUEUED and entry.record.pending_reason is None:
            now = dt.datetime.now(dt.UTC)
            await self._store.swap(pending(entry.record, reason, now=now), entry.revision)
        self._on_pass(delivery.consumer)
        hasty = delivery.times_delivered < HASTY_DELIVERIES
        await delivery.nak(HASTY_SECONDS if hasty else PASS_ON_SECONDS)

    async def _take(self, entry: Entry, delivery: Delivery, lease_seconds: float) -> HeldLease:
        since = time.monotonic()
        record = claimed(
            entry.record,
            worker_id=self._worker_id,
            revision=entry.revision,
            now=dt.datetime.now(dt.UTC),
            lease_seconds=lease_seconds,
        )
        held = await self._swap(record, entry.revision)
        self._observe(moved(held.record))
        return HeldLease(self._connection, self._topology, self._store, held, delivery, since=since)

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

    async def _end(
        self, entry: Entry, decision: Decision, delivery: Delivery, objection: JobError | None
    ) -> None:
        """The job is over: nothing of it may stay behind, here, in its record or in its events.

        The paths of one whose signature is objected to are not trusted: nothing is touched there.
        """
        now, cause = dt.datetime.now(dt.UTC), stop_cause(entry.record)
        if decision is Decision.CANCEL and cause is not None:
            ended = stopped(entry.record, cause, now=now, by=self._worker_id)
            entry = await self._store.swap(ended, entry.revision)
            self._observe(moved(ended, cause.code))
        elif decision is Decision.CLAIM and objection is not None:
            log.warning("job %s is refused: %s", entry.record.job_id, objection.message)
            ended = failed(entry.record, objection, now=now, by=self._worker_id)
            entry = await self._store.swap(ended, entry.revision)
            self._observe(moved(ended, objection.code))
        if objection is None:
            await self._clear_away(entry.record)
        await self._tell_end(entry)
        await delivery.ack()

    async def _clear_away(self, record: JobRecord) -> None:
        """What a killed attempt has left on this host, if it is the one."""
        if record.attempt > 0 and record.spec is not None:
            destination = self._site.destination(record.spec.artifacts.output_path)
            completed = record.state is State.COMPLETED
            await clear_away(destination, record.job_id, keep_outputs=completed)

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
            reason=INVALID_JOB,
            message=words,
            by=self._worker_id,
        )
        self._observe(DeadLettered("invalid-job"))
        await delivery.ack()


def _outlived_its_record(delivery: Delivery) -> bool:
    """A day is left for clocks that differ."""
    return time.time() - delivery.stored_at > FORGOTTEN_SECONDS
