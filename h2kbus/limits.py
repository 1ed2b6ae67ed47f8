"""Named limits as they stand: the places that jobs have, and the ceilings that operators have set."""

import contextlib
from collections import defaultdict
from typing import Final

import msgspec

from h2kbus.answers import Stored
from h2kbus.connection import Connection
from h2kbus.errors import InvalidMessage
from subjects.codec import decode, encode
from subjects.limits import Ceiling, Place, label_key
from subjects.topology import Topology

_DELETED: Final = {"KV-Operation": "DEL"}


class HeldPlace(msgspec.Struct, frozen=True):
    """A place that a job has. `written` is the server's time of that (RFC 3339), if it was read."""

    place: Place
    written: str = ""


class LimitUse(msgspec.Struct, frozen=True, kw_only=True):
    """A limit's ceiling, if operators have set one, and the jobs that have a place under it."""

    label: str
    ceiling: int | None
    jobs: tuple[str, ...]


class Places:
    """A view of all places, by keys `<hash of the label>.<number>`, kept up to date by `read_places`."""

    def __init__(self) -> None:
        self.after = 0
        self._revisions: dict[str, int] = {}
        self._held: defaultdict[str, dict[int, HeldPlace]] = defaultdict(dict)

    def revision(self, label: str, number: int) -> int:
        """The revision of the place's key, 0 for one that nobody has ever had."""
        return self._revisions.get(key_of(label, number), 0)

    def has(self, label: str, job_id: str) -> bool:
        """Whether the job has a place under the label."""
        return any(each.place.job_id == job_id for each in self._held[label_key(label)].values())

    def free(self, label: str, most: int) -> int | None:
        """The first free place, if fewer than `most` are held."""
        held = self._held[label_key(label)]
        if len(held) >= most:
            return None
        return next(number for number in range(most) if number not in held)

    def held(self) -> list[HeldPlace]:
        """All places that jobs have."""
        return [each for places in self._held.values() for each in places.values()]

    def put(self, label: str, number: int, revision: int, held: HeldPlace | None) -> None:
        """Learn who has a place at a revision; None for nobody."""
        self._revisions[key_of(label, number)] = revision
        self._set(label_key(label), number, held)

    def learn(self, key: str, stored: Stored | None) -> None:
        """Learn what lies under a place's key; None for nothing, not even a trace."""
        self._revisions[key] = stored.seq if stored else 0
        digest, _, number = key.partition(".")
        self._set(digest, int(number), _readable(stored) if stored else None)

    def _set(self, digest: str, number: int, held: HeldPlace | None) -> None:
        if held is None:
            self._held[digest].pop(number, None)
        else:
            self._held[digest][number] = held


def key_of(label: str, number: int) -> str:
    """The last part of a place's key."""
    return f"{label_key(label)}.{number}"


async def read_places(connection: Connection, topology: Topology, places: Places) -> None:
    """Bring the view up to date."""
    stream = topology.bucket_stream(topology.locks_bucket)
    async for stored in connection.read(stream, topology.place_subject("*", "*"), after=places.after):
        places.after = stored.seq
        key = ".".join(stored.subject.rsplit(".", 2)[1:])
        # Whatever else somebody put there is no place, and stops nobody.
        with contextlib.suppress(ValueError):
            places.learn(key, stored)


async def read_ceilings(connection: Connection, topology: Topology) -> dict[str, Ceiling]:
    """What operators have set, by label. What is no ceiling is left out."""
    stream = topology.bucket_stream(topology.settings_bucket)
    prefix = topology.ceiling_subject("")
    found = {}
    async for stored in connection.read(stream, f"{prefix}>"):
        with contextlib.suppress(InvalidMessage):
            if stored.data:
                found[stored.subject.removeprefix(prefix)] = decode(Ceiling, stored.data)
    return found


async def read_limits(connection: Connection, topology: Topology) -> list[LimitUse]:
    """Every label that has a ceiling or a job, and who has its places."""
    places = Places()
    await read_places(connection, topology, places)
    ceilings = await read_ceilings(connection, topology)
    jobs: defaultdict[str, list[str]] = defaultdict(list)
    for held in places.held():
        jobs[held.place.label].append(held.place.job_id)
    return [
        LimitUse(
            label=label,
            ceiling=ceilings[label].at_most if label in ceilings else None,
            jobs=tuple(sorted(jobs.get(label, ()))),
        )
        for label in sorted(ceilings.keys() | jobs.keys())
    ]


async def set_ceiling(
    connection: Connection, topology: Topology, label: str, ceiling: Ceiling | None
) -> None:
    """Allow at most so many jobs with the label at once; None takes that back. Those that run go on."""
    subject = topology.ceiling_subject(label)
    if ceiling is None:
        await connection.publish(subject, b"", _DELETED)
    else:
        await connection.publish(subject, encode(ceiling))


def _readable(stored: Stored) -> HeldPlace | None:
    """Who has the place; None for one that was given back, and for what is no place."""
    with contextlib.suppress(InvalidMessage):
        return HeldPlace(decode(Place, stored.data), stored.time) if stored.data else None
    return None
