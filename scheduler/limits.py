"""Places under named limits: taken before a job goes to its lane, given back when the job has ended.

A place belongs to a job, not to an attempt, so it outlives the workers and the schedulers that die meanwhile.
There are few of them: this scheduler's view of them is kept in memory, and every change is a compare-and-set.
"""

import contextlib
import datetime as dt
from collections.abc import Mapping
from typing import Final

from h2kbus.connection import Connection
from h2kbus.errors import RevisionConflict
from h2kbus.limits import HeldPlace, Places, key_of, read_ceilings, read_places
from h2kbus.store import JobStore, is_older
from subjects.codec import encode
from subjects.limits import Ceiling, Place, allowed, label_key
from subjects.topology import REFRESH_SECONDS, Topology

ORPHAN_SECONDS: Final = 60.0
"""A place whose job has no record is given back after this long: the record is made right after."""
TRIES: Final = 8
"""Lost races before the job has to wait for the next round."""
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_GIVEN_BACK: Final = {"KV-Operation": "DEL"}


class Limits:
    """The places of one fleet, as one scheduler sees and changes them."""

    def __init__(self, connection: Connection, topology: Topology, store: JobStore) -> None:
        self._connection = connection
        self._topology = topology
        self._store = store
        self._places = Places()
        self._ceilings: Mapping[str, Ceiling] = {}
        self._known = False

    def hindrance(self, job_id: str, limit: Mapping[str, int]) -> str | None:
        """Under which label the job finds no place, in words; None when it finds all, as far as is known."""
        for label, asked in sorted(limit.items()):
            most = allowed(label, asked, self._ceilings)
            if not self._places.has(label, job_id) and self._places.free(label, most) is None:
                return f"waits for one of {most} places under the limit {label}"
        return None

    async def take(self, job_id: str, limit: Mapping[str, int]) -> str | None:
        """Take a place under each label, or none: then say what the job waits for."""
        if limit and not self._known:
            await self.refresh()
        for _ in range(TRIES):
            words = self.hindrance(job_id, limit)
            if words is not None:
                await self._give_back_of(job_id, limit)
                return words
            try:
                await self._take_all(job_id, limit)
            except RevisionConflict:
                continue
            return None
        return "waits for a place that others are faster to take"

    async def _take_all(self, job_id: str, limit: Mapping[str, int]) -> None:
        """Raises RevisionConflict when somebody else was faster; what was taken is given back then."""
        taken: list[Place] = []
        try:
            # Everybody takes them in the same order, so that nobody waits in a circle.
            for label, asked in sorted(limit.items()):
                if self._places.has(label, job_id):
                    continue
                place = Place(label=label, number=self._free(label, asked), job_id=job_id)
                await self._keep(place)
                taken.append(place)
        except RevisionConflict:
            for place in taken:
                await self._give_back(place)
            raise

    def _free(self, label: str, asked: int) -> int:
        number = self._places.free(label, allowed(label, asked, self._ceilings))
        if number is None:
            raise RevisionConflict(f"the last place under the limit {label} has been taken meanwhile")
        return number

    async def _give_back_of(self, job_id: str, limit: Mapping[str, int]) -> None:
        """What a scheduler took that died half-way: two jobs must not wait for each other's places."""
        for held in self._places.held():
            if held.place.job_id == job_id and held.place.label in limit:
                with contextlib.suppress(RevisionConflict):
                    await self._give_back(held.place)

    async def refresh(self) -> None:
        """Learn what has changed. Raises BusError."""
        await read_places(self._connection, self._topology, self._places)
        self._ceilings = await read_ceilings(self._connection, self._topology)
        self._known = True

    async def sweep(self, clock: dt.datetime) -> None:
        """Give back the places of jobs that have ended, whoever took them. `clock` is the server's time."""
        await self.refresh()
        held = self._places.held()
        found = await self._store.find_many([each.place.job_id for each in held])
        for each, entry in zip(held, found, strict=True):
            ended = entry.record.state.terminal if entry else _is_older(each, ORPHAN_SECONDS, clock)
            # Somebody else who was faster has done the same.
            with contextlib.suppress(RevisionConflict):
                if ended:
                    await self._give_back(each.place)
                elif _is_older(each, REFRESH_SECONDS, clock):
                    await self._keep(each.place)

    async def _keep(self, place: Place) -> None:
        revision = await self._write(place, encode(place), {})
        self._places.put(place.label, place.number, revision, HeldPlace(place))

    async def _give_back(self, place: Place) -> None:
        revision = await self._write(place, b"", _GIVEN_BACK)
        self._places.put(place.label, place.number, revision, None)

    async def _write(self, place: Place, data: bytes, headers: Mapping[str, str]) -> int:
        """The new revision. Raises RevisionConflict; then what is true of the place has been read."""
        subject = self._topology.place_subject(label_key(place.label), place.number)
        expected = str(self._places.revision(place.label, place.number))
        try:
            return await self._connection.publish(subject, data, {**headers, _EXPECTED: expected})
        except RevisionConflict:
            stream = self._topology.bucket_stream(self._topology.locks_bucket)
            stored = await self._connection.get_last(stream, subject)
            self._places.learn(key_of(place.label, place.number), stored)
            raise


def _is_older(held: HeldPlace, seconds: float, clock: dt.datetime) -> bool:
    """Whether it was written longer ago than that; what has not been read back is new."""
    return bool(held.written) and is_older(held.written, seconds, clock)
