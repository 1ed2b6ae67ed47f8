"""Image locks: taken before a job goes to its lane, given back when the job has ended.

A lock belongs to a job, not to an attempt: the attempts of one job are kept apart by its lease.
"""

import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import Final

from h2kbus.answers import Stored
from h2kbus.connection import Connection
from h2kbus.errors import InvalidMessage, RevisionConflict
from h2kbus.store import JobStore, is_older
from subjects.catalog import OperationCatalog
from subjects.codec import decode, encode
from subjects.locks import ImageLock, lock_key, lock_of
from subjects.operations import parameters_of
from subjects.record import JobGlimpse
from subjects.spec import JobSpec
from subjects.topology import REFRESH_SECONDS, Topology

ORPHAN_SECONDS: Final = 60.0
"""A lock whose job has no record is given back after this long: the record is made right after the lock."""
LOOKED_UP: Final = 500
"""How many locks a round looks at."""
TRIES: Final = 8
"""Lost races before the job has to wait for the next round."""
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_GIVEN_BACK: Final = {"KV-Operation": "DEL"}


class ImageLocks:
    """The locks of one fleet, as one scheduler sees and changes them. Every change is a compare-and-set."""

    def __init__(
        self, connection: Connection, topology: Topology, store: JobStore, catalog: OperationCatalog
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._store = store
        self._catalog = catalog
        self._stream = topology.bucket_stream(topology.locks_bucket)
        self._next = 1

    async def take(self, job_id: str, spec: JobSpec | None) -> str | None:
        """Take the locks of all images that the job writes, or none: then say what it waits for.

        Raises InvalidMessage for an operation that this scheduler does not know.
        """
        taken: dict[str, int] = {}
        # Everybody takes them in the same order, so that nobody waits in a circle.
        for lock in sorted(self._needed(job_id, spec), key=lock_key):
            held = await self._take(lock)
            if isinstance(held, str):
                for name, revision in taken.items():
                    await self._give_back(name, revision)
                return f"waits for job {held}, which writes {lock.path}"
            taken[lock_key(lock)] = held
        return None

    def _needed(self, job_id: str, spec: JobSpec | None) -> list[ImageLock]:
        if spec is None:
            return []
        declaration = self._catalog.declaration_of(spec)
        if not declaration.writes_images:
            return []
        paths = declaration.writes(spec, parameters_of(declaration, spec.parameters))
        return [lock_of(spec.pool, each, job_id) for each in paths]

    async def give_back_of(self, jobs: Sequence[JobGlimpse]) -> None:
        """Give back the locks of jobs that have just ended."""
        writers = [each.job_id for each in jobs if self._may_write(each.operation)]
        for entry in await self._store.find_many(writers):
            if entry is None or not entry.record.state.terminal:
                continue
            # What this scheduler finds unfit was scheduled by another one, which has a newer declaration.
            with contextlib.suppress(InvalidMessage):
                for lock in self._needed(entry.record.job_id, entry.record.spec):
                    found = await self._connection.get_last(self._stream, self._subject(lock))
                    if found is not None and _readable(found) == lock:
                        await self._give_back(lock_key(lock), found.seq)

    def _may_write(self, operation: str) -> bool:
        """Most jobs of a busy fleet need not be looked up again only because they have ended."""
        declaration = self._catalog.get(operation)
        return declaration is not None and declaration.writes_images

    async def sweep(self, clock: dt.datetime) -> None:
        """Look at some hundreds of locks, the next ones each time: those of ended jobs are given back.

        `clock` is the server's time. A million jobs that wait have as many locks, so none is remembered.
        """
        query = {"next_by_subj": self._topology.lock_subject("*"), "seq": self._next}
        batch = await self._connection.get_batch(self._stream, query, size=LOOKED_UP)
        self._next = batch.messages[-1].seq + 1 if batch.messages and batch.has_more else 1
        held = [(stored, lock) for stored in batch.messages if (lock := _readable(stored)) is not None]
        found = await self._store.find_many([lock.job_id for _, lock in held])
        for (stored, lock), entry in zip(held, found, strict=True):
            ended = entry.record.state.terminal if entry else is_older(stored.time, ORPHAN_SECONDS, clock)
            if ended:
                await self._give_back(lock_key(lock), stored.seq)
            elif is_older(stored.time, REFRESH_SECONDS, clock):
                await self._take(lock)

    async def _take(self, lock: ImageLock) -> int | str:
        """Take one lock: its new revision, or the id of the job that has it and has not ended.

        What is ours already is written anew, so that nobody gives back what we believe to have.
        """
        subject = self._subject(lock)
        for _ in range(TRIES):
            found = await self._connection.get_last(self._stream, subject)
            current = _readable(found) if found else None
            holder = current.job_id if current else lock.job_id
            if holder != lock.job_id and not await self._has_ended(holder):
                return holder
            with contextlib.suppress(RevisionConflict):
                expected = {_EXPECTED: str(found.seq if found else 0)}
                return await self._connection.publish(subject, encode(lock), expected)
        return "that is faster"

    def _subject(self, lock: ImageLock) -> str:
        return self._topology.lock_subject(lock_key(lock))

    async def _has_ended(self, job_id: str) -> bool:
        entry = await self._store.find(job_id)
        return entry is not None and entry.record.state.terminal

    async def _give_back(self, name: str, revision: int) -> bool:
        """Give a lock back unless it has changed since; false then."""
        headers = {**_GIVEN_BACK, _EXPECTED: str(revision)}
        try:
            await self._connection.publish(self._topology.lock_subject(name), b"", headers)
        except RevisionConflict:
            return False
        return True


def _readable(stored: Stored) -> ImageLock | None:
    """The lock under a key; None for one that was given back, and for what is no lock."""
    with contextlib.suppress(InvalidMessage):
        return decode(ImageLock, stored.data) if stored.data else None
    return None
