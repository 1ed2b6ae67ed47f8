"""From a record to what the world sees of it: its lane, its events, its end.

Every step may be repeated, by any number of schedulers: a lane holds one message per job, and an event
built twice from one entry is the same event.
"""

import contextlib
import datetime as dt
from collections.abc import Sequence

from h2kbus.connection import Connection
from h2kbus.errors import SubjectTaken
from h2kbus.journal import publish_event
from h2kbus.store import Entry, JobStore
from h2kbus.telemetry import SILENT, Telemetry, moved
from h2kbus.watch import readable
from subjects.codec import encode
from subjects.events import ProgressEvent, milestone
from subjects.lifecycle import stop_requested, stopped
from subjects.record import JobRecord, LaneMessage
from subjects.result import JobError
from subjects.topology import Topology


class Dispatch:
    """Puts jobs into their lanes, and stops them."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        store: JobStore,
        name: str,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self.connection = connection
        self.topology = topology
        self.store = store
        self.name = name
        self.telemetry = telemetry

    async def tell(self, entry: Entry) -> None:
        """Publish the event that tells of the record as it is."""
        await publish_event(self.connection, self.topology, milestone(entry.record, entry.revision))

    async def deliver(self, entry: Entry) -> None:
        """Tell of the job, then put it in its lane; a lane that has it already is as good.

        The event needs no answer of its own: it goes the same way just before the lane's message, and
        unless that one arrives both are sent again.
        """
        event = encode(milestone(entry.record, entry.revision))
        progress = self.topology.grammar.progress(entry.record.job_id)
        await self.connection.publish_unconfirmed(progress, event)
        await self.put_in_lane(entry)

    async def put_in_lane(self, entry: Entry) -> None:
        """Hand the job to a worker: to work on, or, if it has ended, to clear away what an attempt left."""
        message = LaneMessage(
            revision=entry.revision, record=entry.record, lease_seconds=self.topology.lease_seconds
        )
        with contextlib.suppress(SubjectTaken):
            await self.connection.publish(self._lane_subject(entry.record), encode(message))

    async def in_lanes(self, jobs: Sequence[JobRecord]) -> list[bool]:
        """Whether each job's lane holds a message for it, delivered or not."""
        subjects = [self._lane_subject(each) for each in jobs]
        found = await self.connection.get_last_together(self.topology.jobs_stream, subjects)
        return [each is not None for each in found]

    async def last_words(self, job_ids: Sequence[str]) -> list[ProgressEvent | None]:
        """The last event of each job."""
        subjects = [self.topology.grammar.progress(each) for each in job_ids]
        found = await self.connection.get_last_together(self.topology.progress_stream, subjects)
        return [readable(each.data) if each else None for each in found]

    async def stop(self, entry: Entry, cause: JobError) -> None:
        """End a job that nobody works on; ask the worker of one that runs. Raises RevisionConflict.

        The message of a job that has ended stays in its lane until a worker clears it away: taking it out
        here would need the right to purge the whole stream.
        A job whose outputs may have been published already is ended by a worker, which finds out.
        """
        now, record = dt.datetime.now(dt.UTC), entry.record
        if record.state.leased or record.publishing:
            await self.store.swap(stop_requested(record, cause.code, now=now), entry.revision)
            hint = self.topology.grammar.control(record.worker_id or "nobody")
            await self.connection.publish_unconfirmed(hint, record.job_id.encode())
            return
        ended = await self.store.swap(stopped(record, cause, now=now, by=self.name), entry.revision)
        self.telemetry.observe(moved(ended.record, cause.code))
        await self.tell(ended)

    def _lane_subject(self, record: JobRecord) -> str:
        return self.topology.grammar.job(record.pool, record.lane, record.priority, record.job_id)
