"""Holding a job: renewal by compare-and-set, and the end of the attempt when that is lost.

A lease is extended only after the server agreed. A worker that gets no agreement for LEASE_SECONDS
stops by itself, before JetStream may hand the job to another one.
"""

import datetime as dt
import logging
import time
from pathlib import Path
from typing import Final

import anyio

from h2kbus.connection import Connection
from h2kbus.errors import AttemptStopped, BusError, ErrorCode, RevisionConflict
from h2kbus.journal import publish_event
from h2kbus.pull import Delivery
from h2kbus.store import Entry, JobStore
from subjects.lifecycle import renewed
from subjects.topology import LEASE_SECONDS, RENEW_SECONDS, Topology
from workers.progress import ProgressReport, progress_event

log = logging.getLogger("h2kbus.worker")

TICK_SECONDS: Final = 0.25
PROGRESS_SECONDS: Final = 1.0
"""Each event makes a durable server sync its disk, which a tool that writes to the same disk pays for."""
PROGRESS_RENEW_SECONDS: Final = 5.0
"""Progress reaches the record this often at the most; the events have all of it."""


class HeldLease:
    """One job that this worker holds, from its claim to its settlement."""

    def __init__(
        self, connection: Connection, topology: Topology, store: JobStore, entry: Entry, delivery: Delivery
    ) -> None:
        self.entry = entry
        self.delivery = delivery
        self.report: ProgressReport | None = None
        self.scope = anyio.CancelScope()
        self.cause: AttemptStopped | None = None
        self._closed = False
        self._lock: anyio.Lock | None = None
        self.log_file: Path | None = None
        self._connection = connection
        self._topology = topology
        self._store = store
        self._began = self._confirmed = self._tried = time.monotonic()
        self._sent, self._sent_at = 0, self._began
        spec = entry.record.spec
        self.time_out = spec.execution_policy.timeout_seconds if spec else 0

    @property
    def job_id(self) -> str:
        return self.entry.record.job_id

    @property
    def expired(self) -> bool:
        return time.monotonic() - self._confirmed > LEASE_SECONDS

    @property
    def overdue(self) -> bool:
        """Whether the attempt has used up its time, on this host's monotonic clock."""
        return time.monotonic() - self._began > self.time_out

    @property
    def due(self) -> bool:
        """Whether it is time to renew: early when the first progress or a new phase is to be recorded."""
        since = time.monotonic() - self._tried
        return since > RENEW_SECONDS or (self._has_news() and since > PROGRESS_RENEW_SECONDS)

    @property
    def has_progress_to_send(self) -> bool:
        """A new phase is told at once; within a phase one event a while is enough."""
        if self.report is None or not self.report.has_unsent:
            return False
        return self.report.has_new_phase or time.monotonic() - self._sent_at > PROGRESS_SECONDS

    def stop(self, code: ErrorCode, message: str) -> None:
        """End the attempt from outside; the first cause stands."""
        if self.cause is None:
            self.cause = AttemptStopped(code, message)
            self.scope.cancel()

    async def close(self) -> None:
        """From here on nothing is renewed or sent; what is under way ends first."""
        self._closed = True
        if self._lock is not None:
            async with self._lock:
                return

    async def guard(self) -> None:
        """Return if the lease is held now, by the server's word; raise AttemptStopped if it is not."""
        await self.renew()
        if self.cause is not None:
            raise self.cause
        if time.monotonic() - self._confirmed > RENEW_SECONDS:
            self.stop(ErrorCode.LEASE_LOST, "the bus did not confirm the lease")
            raise AttemptStopped(ErrorCode.LEASE_LOST, "the bus did not confirm the lease")

    async def renew(self) -> None:
        """Write the record anew. A lost race is read: cancelled and taken over both stop the attempt."""
        async with self._alone():
            if self._closed:
                return
            self._tried = began = time.monotonic()
            summary = self.report.summary() if self.report else None
            record = renewed(self.entry.record, summary, now=dt.datetime.now(dt.UTC))
            try:
                await self.delivery.in_progress()
                self._adopt(await self._store.swap(record, self.entry.revision))
                self._confirmed = began
            except RevisionConflict:
                await self._reread(began)
            except BusError as error:
                log.warning("job %s: the lease was not renewed: %s", self.job_id, error)

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

    async def _reread(self, began: float) -> None:
        try:
            found = await self._store.find(self.job_id)
        except BusError as error:
            log.warning("job %s: the lease could not be read: %s", self.job_id, error)
            return
        if found is None or found.record.lease != self.entry.record.lease:
            self.stop(ErrorCode.LEASE_LOST, "another worker or the scheduler has taken the job")
            return
        self._adopt(found)
        self._confirmed = began
        if found.record.cancel_requested:
            self.stop(ErrorCode.CANCELLED, "cancelled on request")

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
            await lease.renew()

    async def run(self) -> None:
        """Tick until cancelled. Jobs are served at once each, so that one slow answer holds up no other."""
        while True:
            await anyio.sleep(TICK_SECONDS)
            async with anyio.create_task_group() as group:
                for lease in list(self._held.values()):
                    group.start_soon(self._serve, lease)

    async def _serve(self, lease: HeldLease) -> None:
        if lease.expired:
            lease.stop(ErrorCode.LEASE_LOST, f"the bus was silent for {LEASE_SECONDS:g} s")
            return
        if lease.overdue:
            lease.stop(ErrorCode.TIMEOUT, f"the attempt took longer than {lease.time_out} s")
        if lease.due:
            await lease.renew()
        if not lease.has_progress_to_send:
            return
        try:
            await lease.send_progress()
        except BusError as error:
            log.warning("job %s: progress was not sent: %s", lease.job_id, error)
