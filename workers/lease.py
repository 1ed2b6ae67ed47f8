"""Holding a job: renewal by compare-and-set, and the end of the attempt when that is lost.

A lease is extended only after the server agreed, counted from before it was asked. A worker that gets no
agreement in time stops by itself, before anybody may give the job to another one.
"""

import datetime as dt
import logging
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskGroup

from h2kbus.connection import Connection
from h2kbus.errors import AttemptStopped, BusError, ErrorCode, H2KBusError, RevisionConflict
from h2kbus.journal import publish_event
from h2kbus.logs import bound, trace_id
from h2kbus.pull import Delivery
from h2kbus.store import Entry, JobStore
from subjects.lease import Lease
from subjects.lifecycle import publishing, renewed, stop_cause
from subjects.topology import Topology
from workers.process import ToolRunner
from workers.progress import ProgressReport, progress_event
from workers.publication import Publication

log = logging.getLogger("h2kbus.worker")

TICK_SECONDS: Final = 0.25
PROGRESS_SECONDS: Final = 1.0
"""Each event makes a durable server sync its disk, which a tool that writes to the same disk pays for."""
PROGRESS_RENEW_SECONDS: Final = 5.0
"""Progress reaches the record this often at the most; the events have all of it."""
AGAIN_SECONDS: Final = 1.0
"""A renewal that failed is tried again after this long."""


class HeldLease:
    """One job that this worker holds, from its claim to its settlement.

    `since` is the monotonic moment before the claim was written.
    """

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        store: JobStore,
        entry: Entry,
        delivery: Delivery,
        *,
        since: float,
    ) -> None:
        self.entry = entry
        self.delivery = delivery
        self.terms = terms_of(entry)
        self.report: ProgressReport | None = None
        self.publication: Publication | None = None
        self.scope = anyio.CancelScope()
        self.cause: AttemptStopped | None = None
        self._closed = False
        self._lock: anyio.Lock | None = None
        self.log_file: Path | None = None
        self.log_from = 0
        self.tools: ToolRunner | None = None
        self._connection = connection
        self._topology = topology
        self._store = store
        self._began = self._confirmed = self._tried = since
        self._served = False
        self._sent, self._sent_at = 0, self._began
        spec = entry.record.spec
        self.time_out = spec.execution_policy.timeout_seconds if spec else 0

    @property
    def job_id(self) -> str:
        return self.entry.record.job_id

    @property
    def age(self) -> float:
        """Seconds since the claim."""
        return time.monotonic() - self._began

    @property
    def expired(self) -> bool:
        return time.monotonic() - self._confirmed > self.terms.hold_for

    @property
    def _is_lost(self) -> bool:
        """An attempt that ends for any other reason still holds its job until that is settled."""
        return self.cause is not None and self.cause.error_code is ErrorCode.LEASE_LOST

    @property
    def overdue(self) -> bool:
        """Whether the attempt has used up its time, on this host's monotonic clock."""
        return self.age > self.time_out

    @property
    def due(self) -> bool:
        """Whether it is time to renew: early when the first progress or a new phase is to be recorded."""
        now = time.monotonic()
        if now - self._tried < AGAIN_SECONDS:
            return False
        since = now - self._confirmed
        return since > self.terms.renew_after or (self._has_news() and since > PROGRESS_RENEW_SECONDS)

    @property
    def has_progress_to_send(self) -> bool:
        """A new phase is told at once; within a phase one event a while is enough."""
        if self.report is None or not self.report.has_unsent:
            return False
        return self.report.has_new_phase or time.monotonic() - self._sent_at > PROGRESS_SECONDS

    def log_fields(self) -> AbstractContextManager[None]:
        """Have what is logged inside say which attempt it is about."""
        record = self.entry.record
        return bound(job_id=self.job_id, attempt=record.attempt, trace_id=trace_id(record.traceparent))

    def stop(self, code: ErrorCode, message: str) -> None:
        """End the attempt from outside; the first cause stands."""
        if self.cause is None:
            self.cause = AttemptStopped(code, message)
            self.scope.cancel()

    def tick(self, group: TaskGroup) -> None:
        """End the attempt if it is time, and begin what is due on the bus unless that is under way."""
        if self.expired:
            self.stop(ErrorCode.LEASE_LOST, f"the bus was silent for {self.terms.hold_for:g} s")
        elif self.overdue:
            self.stop(ErrorCode.TIMEOUT, f"the attempt took longer than {self.time_out} s")
        if not self._served and (self.due or self.has_progress_to_send):
            self._served = True
            group.start_soon(self._serve)

    async def _serve(self) -> None:
        try:
            with self.log_fields():
                await self._tell()
        finally:
            self._served = False

    async def _tell(self) -> None:
        try:
            if self.due:
                await self.renew()
            if self.has_progress_to_send:
                await self.send_progress()
        except H2KBusError as error:
            log.warning("job %s: the bus was not told: %s", self.job_id, error)

    async def close(self) -> None:
        """From here on nothing is renewed or sent; what is under way ends first."""
        self._closed = True
        if self._lock is not None:
            async with self._lock:
                return

    async def guard(self) -> None:
        """Mark the record as publishing, by the server's word that the lease is held.

        While the server does not answer it is asked again, for as long as the lease lasts; after that
        `tick` ends the attempt. Raises AttemptStopped when the attempt is to end.
        """
        while self.cause is None:
            if await self.renew(marks_publishing=True):
                break
            await anyio.sleep(AGAIN_SECONDS)
        if self.cause is not None:
            raise self.cause

    async def renew(self, *, marks_publishing: bool = False) -> bool:
        """Write the record anew; false when that is not known to have happened.

        A lost race is read: what asks for the attempt's end stops it. Otherwise it is our own write, whose
        answer had got lost, and the next try follows at once, since only a write that is answered counts.
        """
        async with self._alone():
            for _ in range(3):
                if self._closed or self._is_lost:
                    return False
                self._tried = began = time.monotonic()
                try:
                    await self._write(marks_publishing=marks_publishing)
                except RevisionConflict:
                    await self._reread()
                except BusError as error:
                    log.warning("job %s: the lease was not renewed: %s", self.job_id, error)
                    return False
                else:
                    self._confirmed = began
                    return True
        return False

    async def _write(self, *, marks_publishing: bool) -> None:
        """One renewal; JetStream is told after it, so that it never waits longer than everybody else."""
        summary = self.report.summary() if self.report else None
        record = renewed(self.entry.record, summary, now=dt.datetime.now(dt.UTC))
        if marks_publishing:
            record = publishing(record)
        self._adopt(await self._store.swap(record, self.entry.revision))
        await self.delivery.in_progress()

    async def send_progress(self) -> None:
        """Publish what the operation has said since the last time."""
        if self.report is None or not self.report.has_unsent:
            return
        async with self._alone():
            if self._closed:
                return
            self._sent_at = time.monotonic()
            for snapshot in self.report.take_unsent():
                self._sent += 1
                eta = self.report.eta_seconds(snapshot)
                event = progress_event(self.entry.record, self.entry.revision, self._sent, snapshot, eta)
                await publish_event(self._connection, self._topology, event)

    def _alone(self) -> anyio.Lock:
        """Renewal and progress exclude each other. Most short jobs need neither, and no lock."""
        if self._lock is None:
            self._lock = anyio.Lock()
        return self._lock

    async def _reread(self) -> None:
        try:
            found = await self._store.find(self.job_id)
        except BusError as error:
            log.warning("job %s: the lease could not be read: %s", self.job_id, error)
            return
        if found is None or found.record.lease != self.entry.record.lease:
            self.stop(ErrorCode.LEASE_LOST, "a scheduler has taken the job back")
            return
        # The job is what was claimed: its signature was looked at then.
        record = msgspec.structs.replace(found.record, spec=self.entry.record.spec)
        self._adopt(Entry(record, found.revision))
        cause = stop_cause(found.record)
        if cause is not None:
            self.stop(cause.code, cause.message)

    def _adopt(self, entry: Entry) -> None:
        self.entry = entry
        self._sent = 0

    def _has_news(self) -> bool:
        latest = self.report.latest if self.report else None
        known = self.entry.record.progress
        return latest is not None and (known is None or known.progress_percent != latest.percent)


class LeaseKeeper:
    """Renews all leases of one worker and sends their progress, by one timer."""

    def __init__(self) -> None:
        self._held: dict[str, HeldLease] = {}

    @property
    def job_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self._held))

    @property
    def leases(self) -> tuple[HeldLease, ...]:
        return tuple(self._held.values())

    def holds(self, job_id: str) -> bool:
        return job_id in self._held

    def add(self, lease: HeldLease) -> None:
        self._held[lease.job_id] = lease

    def remove(self, lease: HeldLease) -> None:
        self._held.pop(lease.job_id, None)

    def stop_all(self, code: ErrorCode, message: str) -> None:
        for lease in self._held.values():
            lease.stop(code, message)

    async def check(self, job_id: str) -> None:
        """Somebody hinted that a job changed: a renewal finds out what."""
        lease = self._held.get(job_id)
        if lease is not None:
            with lease.log_fields():
                await lease.renew()

    async def run(self) -> None:
        """Tick until cancelled. A lease's end is seen at once, however slow the bus answers."""
        async with anyio.create_task_group() as group:
            while True:
                await anyio.sleep(TICK_SECONDS)
                for lease in list(self._held.values()):
                    lease.tick(group)


def terms_of(entry: Entry) -> Lease:
    """The lease in a record that was claimed."""
    if entry.record.lease is None:
        raise ValueError(f"job {entry.record.job_id} has no lease")
    return entry.record.lease
