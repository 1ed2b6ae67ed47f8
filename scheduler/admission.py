"""Whether a job may go to its lane: not while another one writes its image, or while a limit is reached."""

import datetime as dt
from collections.abc import Sequence

from scheduler.fleet import FleetView
from scheduler.limits import Limits
from scheduler.locks import ImageLocks
from subjects.fit import Demand
from subjects.record import JobGlimpse
from subjects.spec import JobSpec


class Admission:
    """Takes what a job must have before it goes to its lane, and gives it back when it has ended."""

    def __init__(self, locks: ImageLocks, limits: Limits, fleet: FleetView) -> None:
        self._locks = locks
        self._limits = limits
        self._fleet = fleet

    async def take(self, job_id: str, spec: JobSpec | None, demand: Demand) -> str | None:
        """Take everything, or say in words what the job waits for.

        Raises InvalidMessage for an operation that this scheduler does not know.
        """
        if spec is None:
            return None
        # A job that nobody can run would keep others from its limits' places for nothing.
        unserved = await self._fleet.unserved(demand) if spec.limit else None
        if unserved is not None:
            return unserved
        return await self._locks.take(job_id, spec) or await self._limits.take(job_id, spec.limit)

    def is_hopeless(self, job: JobGlimpse) -> bool:
        """Whether a limit is known to hold the job up; cheap enough to be asked for many at a time."""
        return self._limits.hindrance(job.job_id, job.limit) is not None

    async def give_back_of(self, jobs: Sequence[JobGlimpse]) -> None:
        """Give back the locks of jobs that have just ended."""
        await self._locks.give_back_of(jobs)

    async def sweep(self, clock: dt.datetime) -> None:
        """Find what ended jobs still have, and give it back. `clock` is the server's time."""
        await self._locks.sweep(clock)
        await self._limits.sweep(clock)
