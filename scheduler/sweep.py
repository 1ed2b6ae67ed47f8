"""Looks after the jobs that wait in their lanes, some hundreds in each round.

A job may have vanished from its lane, since a late ack takes a message away whoever holds it; it may wait
for a worker that nobody runs; and its record has to be written anew before it expires.
"""

import datetime as dt
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio

from h2kbus.errors import BusError, RevisionConflict
from h2kbus.logs import bound
from h2kbus.store import Entry, JobStore
from scheduler.dispatch import Dispatch
from scheduler.fleet import FleetView
from scheduler.waiting import Waiting
from subjects.fit import NOBODY, Demand
from subjects.lifecycle import pending
from subjects.record import JobRecord
from subjects.states import State
from subjects.topology import REFRESH_SECONDS

log = logging.getLogger("h2kbus.scheduler")

LOOKED_UP: Final = 500
"""How many jobs a round looks at: a long queue costs little, and each of its jobs has its turn."""
TOGETHER: Final = 32
"""How many records are written at once."""

Action = Callable[[Entry], Awaitable[None]]


class Sweep:
    """One scheduler's rounds through the jobs that wait."""

    def __init__(self, dispatch: Dispatch, fleet: FleetView, waiting: Waiting) -> None:
        self._dispatch = dispatch
        self._store: JobStore = dispatch.store
        self._fleet = fleet
        self._waiting = waiting

    async def run_once(self, now: float, clock: dt.datetime, *, after: float) -> None:
        """Look at those that were seen last more than `after` seconds ago. `clock` is the server's time."""
        revisions = self._waiting.due(now - after, LOOKED_UP)
        found = [each for each in await self._store.at_revisions(revisions) if each is not None]
        there = await self._dispatch.in_lanes([each.record for each in found])
        missing = [entry for entry, in_lane in zip(found, there, strict=True) if not in_lane]
        await self._each(missing, self._put_back)
        await self._each(found, functools.partial(self._refresh, clock))
        for entry in found:
            self._waiting.add(entry.revision, now)

    async def _each(self, entries: Sequence[Entry], action: Action) -> None:
        for start in range(0, len(entries), TOGETHER):
            async with anyio.create_task_group() as group:
                for entry in entries[start : start + TOGETHER]:
                    group.start_soon(self._do, action, entry)

    async def _do(self, action: Action, entry: Entry) -> None:
        """The edge of one look: what fails is logged, and the job has its turn again."""
        with bound(job_id=entry.record.job_id):
            try:
                await action(entry)
            except RevisionConflict:
                pass
            except BusError as error:
                log.warning("job %s cannot be looked after yet: %s", entry.record.job_id, error)

    async def _put_back(self, entry: Entry) -> None:
        log.warning("job %s had vanished from its lane", entry.record.job_id)
        await self._dispatch.put_in_lane(entry)

    async def _refresh(self, clock: dt.datetime, entry: Entry) -> None:
        """Write the record anew if what it says of its waiting is not true any more, or if it is old."""
        reason = await self._reason(entry.record)
        if reason != entry.record.pending_reason:
            now = dt.datetime.now(dt.UTC)
            await self._store.swap(pending(entry.record, reason, now=now), entry.revision)
        elif entry.is_older(REFRESH_SECONDS, clock):
            await self._store.swap(entry.record, entry.revision)

    async def _reason(self, record: JobRecord) -> str | None:
        """Why it waits. What a worker has said of it stands, unless nobody at all can run it."""
        if record.state is not State.QUEUED:
            return record.pending_reason
        reason = await self._fleet.unserved(Demand.of_record(record))
        told = record.pending_reason
        return told if reason is None and told and not told.startswith(NOBODY) else reason
