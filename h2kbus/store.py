"""The jobs bucket: one record per job, written only by compare-and-set."""

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from h2kbus.answers import Stored
from h2kbus.connection import Connection
from h2kbus.errors import JobNotFound
from subjects.codec import decode, encode
from subjects.record import JobRecord
from subjects.topology import Topology

_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
READ_WINDOW: Final = 512


class Entry(msgspec.Struct, frozen=True):
    """A record and the revision at which it was read or written.

    `written` is the server's time of that (RFC 3339), for one that was read.
    """

    record: JobRecord
    revision: int
    written: str = ""

    def is_older(self, seconds: float, clock: dt.datetime) -> bool:
        """Whether it was read and had been written longer ago than that, by the server's clock alone."""
        return bool(self.written) and is_older(self.written, seconds, clock)


class JobStore:
    """Reads and swaps records. Nothing else in h2kbus writes the jobs bucket."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self._connection = connection
        self.topology = topology
        self._stream = topology.bucket_stream(topology.jobs_bucket)

    async def create(self, record: JobRecord) -> Entry:
        """Write the first record of a job; RevisionConflict when there is one already."""
        return await self._write(record, 0)

    async def swap(self, record: JobRecord, revision: int) -> Entry:
        """Replace the record that was read at `revision`; RevisionConflict when it has changed since."""
        return await self._write(record, revision)

    async def find(self, job_id: str) -> Entry | None:
        """The newest record, or None when there is none."""
        stored = await self._connection.get_last(self._stream, self.topology.record_subject(job_id))
        if stored is None or not stored.data:
            return None
        return _entry(stored)

    async def find_many(self, job_ids: Sequence[str]) -> list[Entry | None]:
        """Like `find` for many jobs, hundreds on their way at once."""
        found: list[Entry | None] = []
        for start in range(0, len(job_ids), READ_WINDOW):
            subjects = [self.topology.record_subject(each) for each in job_ids[start : start + READ_WINDOW]]
            answers = await self._connection.get_last_together(self._stream, subjects)
            found += [_entry(stored) if stored is not None and stored.data else None for stored in answers]
        return found

    async def at_revisions(self, revisions: Sequence[int]) -> list[Entry | None]:
        """The records that were written at these revisions; None for one that has changed since."""
        found: list[Entry | None] = []
        for start in range(0, len(revisions), READ_WINDOW):
            wanted = revisions[start : start + READ_WINDOW]
            answers = await self._connection.get_revisions_together(self._stream, wanted)
            found += [_entry(stored) if stored is not None and stored.data else None for stored in answers]
        return found

    async def get(self, job_id: str) -> Entry:
        """The newest record; raises JobNotFound when there is none."""
        entry = await self.find(job_id)
        if entry is None:
            raise JobNotFound(f"no job {job_id}")
        return entry

    async def scan(self, since: str | None = None) -> AsyncIterator[Entry]:
        """Every record, least recently written first; `since` (RFC 3339) leaves out older ones."""
        async for stored in self._connection.read(self._stream, since=since):
            if stored.data:
                yield _entry(stored)

    async def server_time(self) -> dt.datetime:
        """The time by the server's clock: the only one that points in time are held against."""
        info = await self._connection.api(f"STREAM.INFO.{self._stream}")
        return msgspec.convert(info["ts"], dt.datetime)

    async def _write(self, record: JobRecord, expected: int) -> Entry:
        revision = await self._connection.publish(
            self.topology.record_subject(record.job_id), encode(record), {_EXPECTED: str(expected)}
        )
        return Entry(record, revision)


def _entry(stored: Stored) -> Entry:
    return Entry(decode(JobRecord, stored.data), stored.seq, stored.time)


def is_older(written: str, seconds: float, clock: dt.datetime) -> bool:
    """Whether a server's time (RFC 3339) is longer ago than that by its own clock."""
    return clock - msgspec.convert(written, dt.datetime) > dt.timedelta(seconds=seconds)
