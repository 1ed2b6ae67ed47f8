"""What a scheduler does by itself: take jobs back from lost workers, keep deadlines, admit what waited.

Any number of schedulers may do so at once: every effect is a compare-and-set, or a publish that a lane
refuses the second time.
"""

import datetime as dt
import enum
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from h2kbus.changes import ChangeFeed
from h2kbus.errors import BusError, ErrorCode, InvalidMessage, RevisionConflict
from h2kbus.logs import bound
from h2kbus.store import Entry
from h2kbus.telemetry import DutyRound, moved
from scheduler.admission import Admission
from scheduler.dispatch import Dispatch
from scheduler.fleet import FleetView
from scheduler.live import LiveJob, LiveJobs
from scheduler.sweep import Sweep
from subjects.fit import Demand
from subjects.lease import Lease
from subjects.lifecycle import pending, queued, taken_back
from subjects.result import JobError
from subjects.states import State
from subjects.topology import REFRESH_SECONDS

log = logging.getLogger("h2kbus.scheduler")

ROUNDS_PER_LEASE: Final = 30
LONGEST_PAUSE_SECONDS: Final = 2.0
TOGETHER: Final = 32
"""How many jobs are seen to at once."""
LOOKED_UP: Final = 500
"""How many admissions a round tries, and how many of the jobs that have ended it looks up in their events."""

ENDS_OF_LOST_WORKERS: Final = frozenset({ErrorCode.WORKER_LOST, ErrorCode.TIMEOUT})
"""With these a scheduler ends a job whose worker does not answer, and which may have left something."""


class Duty(enum.Enum):
    """What has to be done about a live job."""

    ADMIT = "admit"
    LOST = "lost"
    OVERDUE = "overdue"
    EXPIRE = "expire"
    REFRESH = "refresh"


def duty_of(job: LiveJob, *, now: float, clock: dt.datetime) -> Duty | None:
    """What a job needs, if anything. `now` is monotonic, `clock` the server's time."""
    glimpse, policy = job.glimpse, job.glimpse.policy
    if policy.deadline and policy.deadline <= clock and not glimpse.deadline_exceeded:
        return Duty.EXPIRE
    if glimpse.lease is not None:
        return _duty_about_holder(job, glimpse.lease, now)
    if glimpse.state is State.VALIDATED and (not policy.not_before or policy.not_before <= clock):
        return Duty.ADMIT
    overdue = glimpse.state is State.VALIDATED and job.is_older(REFRESH_SECONDS, clock)
    return Duty.REFRESH if overdue else None


def _duty_about_holder(job: LiveJob, lease: Lease, now: float) -> Duty | None:
    if now - job.since > lease.lost_after:
        return Duty.LOST
    # The holder ends the attempt itself; this is for one that renews its lease and does not.
    overdue = now - job.held_since > job.glimpse.policy.timeout_seconds + lease.seconds
    return Duty.OVERDUE if overdue else None


class Duties:
    """The periodic duties of one scheduler."""

    def __init__(self, dispatch: Dispatch, admission: Admission, fleet: FleetView) -> None:
        self._dispatch = dispatch
        self._store = dispatch.store
        self._admission = admission
        self._name = dispatch.name
        self._observe = dispatch.telemetry.observe
        self._lease_seconds = dispatch.topology.lease_seconds
        self._fleet = fleet
        self._live = LiveJobs(ChangeFeed(dispatch.connection, dispatch.topology))
        self._sweep = Sweep(dispatch, fleet, self._live.waiting)
        self._clock = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._handlers: dict[Duty, Callable[[LiveJob], Awaitable[None]]] = {
            Duty.ADMIT: self._admit,
            Duty.LOST: self._lost,
            Duty.OVERDUE: self._overdue,
            Duty.EXPIRE: self._expire,
            Duty.REFRESH: self._refresh,
        }

    async def run(self) -> None:
        """See to the live jobs again and again, until cancelled."""
        pause = min(LONGEST_PAUSE_SECONDS, self._lease_seconds / ROUNDS_PER_LEASE)
        while True:
            began = time.monotonic()
            try:
                await self.run_once()
            except BusError as error:
                log.warning("the duties have to wait: %s", error)
            self._observe(DutyRound(time.monotonic() - began))
            await anyio.sleep(pause)

    async def run_once(self) -> None:
        """One round. Raises BusError."""
        await self._live.refresh()
        self._clock = clock = await self._store.server_time()
        now = time.monotonic()
        due: dict[Duty, list[LiveJob]] = {each: [] for each in Duty}
        for job in self._live:
            duty = duty_of(job, now=now, clock=clock)
            if duty is not None:
                due[duty].append(job)
        due[Duty.ADMIT] = self._next_to_admit(due[Duty.ADMIT])
        await self._admission.give_back_of(self._live.just_ended())
        for duty, jobs in due.items():
            await self._see_to(duty, jobs)
        await self._sweep.run_once(now, clock, after=self._lease_seconds)
        await self._settle_ends(now)
        await self._admission.sweep(clock)

    def _next_to_admit(self, waiting: list[LiveJob]) -> list[LiveJob]:
        """Those with a chance, the urgent ones first; those that wait for an image take turns."""
        hopeful = [job for job in waiting if not self._admission.is_hopeless(job.glimpse)]
        return sorted(hopeful, key=lambda job: (job.tried, job.glimpse.policy.priority))[:LOOKED_UP]

    async def _settle_ends(self, now: float) -> None:
        """See to the ends of jobs whose worker died, a lease later, once.

        Their lane's message brings another worker, which tells of the end and clears away what is left;
        somebody may have purged the lane.
        """
        ended = self._live.ended_before(now - self._lease_seconds, LOOKED_UP)
        for job_id, last in zip(ended, await self._dispatch.last_words(ended), strict=True):
            told = last is not None and last.state.terminal
            if told and last is not None and last.details.get("code") not in ENDS_OF_LOST_WORKERS:
                continue
            entry = await self._store.find(job_id)
            if entry is None or not entry.record.state.terminal:
                continue
            if not told:
                log.warning("job %s ended %s and nobody had told", job_id, entry.record.state)
                await self._dispatch.tell(entry)
            if entry.record.attempt > 0:
                await self._dispatch.put_in_lane(entry)

    async def _see_to(self, duty: Duty, jobs: list[LiveJob]) -> None:
        for start in range(0, len(jobs), TOGETHER):
            async with anyio.create_task_group() as group:
                for job in jobs[start : start + TOGETHER]:
                    group.start_soon(self._do, duty, job)

    async def _do(self, duty: Duty, job: LiveJob) -> None:
        """The edge of one duty: what fails is logged, and comes again with the next round."""
        with bound(job_id=job.glimpse.job_id):
            try:
                await self._handlers[duty](job)
            except RevisionConflict:
                self._live.forget(job)
            except (BusError, InvalidMessage) as error:
                log.warning("job %s: cannot %s yet: %s", job.glimpse.job_id, duty.value, error)

    async def _current(self, job: LiveJob) -> Entry | None:
        """The record, if it still is as the duty was concluded from."""
        entry = await self._store.find(job.glimpse.job_id)
        if entry is None or entry.revision != job.revision:
            self._live.forget(job)
            return None
        return entry

    async def _admit(self, job: LiveJob) -> None:
        """Nothing but what it must have first holds the job up any more."""
        if self._admission.is_hopeless(job.glimpse):
            return
        entry = await self._current(job)
        if entry is None:
            return
        demand = Demand.of_record(entry.record)
        waits = await self._admission.take(entry.record.job_id, entry.record.spec, demand)
        job.tried = time.monotonic() if waits else 0.0
        now = dt.datetime.now(dt.UTC)
        if waits is None:
            unserved = await self._fleet.unserved(demand)
            admitted = queued(entry.record, now=now, by=self._name, unserved=unserved)
            entry = await self._store.swap(admitted, entry.revision)
            self._observe(moved(entry.record))
            await self._dispatch.deliver(entry)
        elif waits != entry.record.pending_reason or job.is_older(REFRESH_SECONDS, self._clock):
            await self._store.swap(pending(entry.record, waits, now=now), entry.revision)

    async def _lost(self, job: LiveJob) -> None:
        words = f"{job.glimpse.lease.worker_id if job.glimpse.lease else 'its worker'} went silent"
        await self._take_back(job, JobError(code=ErrorCode.WORKER_LOST, message=words))

    async def _overdue(self, job: LiveJob) -> None:
        words = f"its worker did not end the attempt within {job.glimpse.policy.timeout_seconds} s"
        await self._take_back(job, JobError(code=ErrorCode.TIMEOUT, message=words))

    async def _take_back(self, job: LiveJob, error: JobError) -> None:
        entry = await self._current(job)
        if entry is None:
            return
        record = taken_back(entry.record, error, now=dt.datetime.now(dt.UTC), by=self._name)
        log.warning("job %s: %s: now %s", record.job_id, error.message, record.state)
        taken = await self._store.swap(record, entry.revision)
        self._observe(moved(record, record.errors[-1].code))
        if record.state.terminal:
            await self._dispatch.tell(taken)
            await self._dispatch.put_in_lane(taken)
        else:
            await self._dispatch.deliver(taken)

    async def _expire(self, job: LiveJob) -> None:
        entry = await self._current(job)
        if entry is not None:
            cause = JobError(code=ErrorCode.DEADLINE_EXCEEDED, message="the job's deadline has passed")
            await self._dispatch.stop(entry, cause)

    async def _refresh(self, job: LiveJob) -> None:
        """The job has waited for so long that its record would expire: write it as it is."""
        entry = await self._current(job)
        if entry is not None:
            await self._store.swap(entry.record, entry.revision)
