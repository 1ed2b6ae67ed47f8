"""Which jobs have not ended, and since when each is as it is, on this scheduler's own monotonic clock.

Those that merely wait in their lanes are many, and only counted up: see `scheduler.waiting`.
"""

import datetime as dt
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from h2kbus.answers import Stored
from h2kbus.changes import ChangeFeed
from h2kbus.errors import NotProvisioned
from h2kbus.store import is_older
from scheduler.waiting import Waiting
from subjects.record import JobGlimpse
from subjects.states import State

REMEMBERED_ENDS: Final = 2000
"""How many jobs that have ended are remembered; a fleet that ends more in a lease forgets the oldest."""


class LiveJob:
    """One job that has not ended. Times are this process's monotonic seconds.

    `since` is when its record was first seen as it is, `held_since` when its lease's token was, and
    `tried` when its admission was tried last. `written` is the server's own time of the record.
    """

    __slots__ = ("glimpse", "held_since", "revision", "since", "tried", "written")

    def __init__(self, glimpse: JobGlimpse, stored: Stored, now: float) -> None:
        self.glimpse, self.revision, self.written = glimpse, stored.seq, stored.time
        self.since = self.held_since = now
        self.tried = 0.0

    def renew(self, glimpse: JobGlimpse, stored: Stored, now: float) -> None:
        """The record has changed."""
        before, after = self.glimpse.lease, glimpse.lease
        if before is None or after is None or before.token != after.token:
            self.held_since = now
        self.glimpse, self.revision, self.written = glimpse, stored.seq, stored.time
        self.since = now

    def is_older(self, seconds: float, clock: dt.datetime) -> bool:
        """Whether the record was written longer ago than that, by the server's clock alone."""
        return is_older(self.written, seconds, clock)


class LiveJobs:
    """Follows the jobs bucket by reading what has changed since the last time.

    Gives those that somebody holds, that wait for their admission, or that have a deadline.
    """

    def __init__(self, feed: ChangeFeed) -> None:
        self.waiting = Waiting()
        self._feed = feed
        self._jobs: dict[str, LiveJob] = {}
        self._ended: deque[tuple[str, float]] = deque(maxlen=REMEMBERED_ENDS)
        self._just_ended: deque[JobGlimpse] = deque(maxlen=REMEMBERED_ENDS)

    def __iter__(self) -> Iterator[LiveJob]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    async def refresh(self) -> None:
        """Read what has changed; before that nothing may be concluded. Raises BusError."""
        try:
            async for stored, glimpse in self._feed.read(JobGlimpse):
                self._note(glimpse, stored)
        except NotProvisioned:
            # A bucket that was deleted comes back empty.
            self._feed.start_anew()
            self._jobs.clear()
            self.waiting.clear()
            raise

    def ended_before(self, moment: float, at_most: int) -> list[str]:
        """Jobs that were seen to have ended before a monotonic moment; each is given once."""
        found: list[str] = []
        while self._ended and self._ended[0][1] < moment and len(found) < at_most:
            found.append(self._ended.popleft()[0])
        return found

    def just_ended(self) -> list[JobGlimpse]:
        """Jobs that were seen to have ended since this was asked last."""
        found = list(self._just_ended)
        self._just_ended.clear()
        return found

    def forget(self, job: LiveJob) -> None:
        """The job is not as it was thought to be; should it live, its next change brings it back."""
        self._jobs.pop(job.glimpse.job_id, None)

    def _note(self, glimpse: JobGlimpse, stored: Stored) -> None:
        job_id = glimpse.job_id
        now = time.monotonic()
        if glimpse.state.terminal:
            self._jobs.pop(job_id, None)
            self._ended.append((job_id, now))
            self._just_ended.append(glimpse)
            return
        if glimpse.state in (State.QUEUED, State.RETRYING):
            self.waiting.add(stored.seq, now)
            if glimpse.policy.deadline is None:
                self._jobs.pop(job_id, None)
                return
        known = self._jobs.get(job_id)
        if known is None:
            self._jobs[job_id] = LiveJob(glimpse, stored, now)
        else:
            known.renew(glimpse, stored, now)
