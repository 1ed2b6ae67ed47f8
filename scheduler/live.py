"""Which jobs have not ended, and since when each is as it is, on this scheduler's own monotonic clock."""

import time
from collections.abc import Iterator
from typing import Final

import anyio

from h2kbus.errors import NotProvisioned
from h2kbus.store import JobStore
from subjects.record import JobGlimpse

REFRESH_SECONDS: Final = 1.0
"""The longest that one refresh may read; what is left is read by the next."""


class LiveJob:
    """One job that has not ended. Times are this process's monotonic seconds.

    `since` is when its record was first seen as it is, `held_since` when its lease's token was, and
    `checked` when its lane was last looked into.
    """

    __slots__ = ("checked", "glimpse", "held_since", "revision", "since")

    def __init__(self, glimpse: JobGlimpse, revision: int, now: float) -> None:
        self.glimpse = glimpse
        self.revision = revision
        self.since = self.held_since = self.checked = now

    def renew(self, glimpse: JobGlimpse, revision: int, now: float) -> None:
        """The record has changed."""
        if (
            glimpse.lease is None
            or self.glimpse.lease is None
            or glimpse.lease.token != self.glimpse.lease.token
        ):
            self.held_since = now
        self.glimpse, self.revision = glimpse, revision
        self.since = self.checked = now


class LiveJobs:
    """Follows the jobs bucket by reading what has changed since the last time."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._jobs: dict[str, LiveJob] = {}
        self._after = 0

    def __iter__(self) -> Iterator[LiveJob]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    async def refresh(self) -> bool:
        """Read the changes; false when there are more than fit: then nothing may be concluded yet."""
        with anyio.move_on_after(REFRESH_SECONDS):
            try:
                async for glimpse, revision in self._store.changes(self._after):
                    self._after = revision
                    self._note(glimpse, revision)
            except NotProvisioned:
                # A bucket that was deleted comes back empty.
                self._after = 0
                self._jobs.clear()
                raise
            return True
        return False

    def forget(self, job: LiveJob) -> None:
        """The job is not as it was thought to be; should it live, its next change brings it back."""
        self._jobs.pop(job.glimpse.job_id, None)

    def _note(self, glimpse: JobGlimpse, revision: int) -> None:
        if glimpse.state.terminal:
            self._jobs.pop(glimpse.job_id, None)
            return
        now, known = time.monotonic(), self._jobs.get(glimpse.job_id)
        if known is None:
            self._jobs[glimpse.job_id] = LiveJob(glimpse, revision, now)
        else:
            known.renew(glimpse, revision, now)
