"""The fleet's object store: what attempts leave for people to read later, such as their logs.

It is written and read as NATS's own object stores are, so that its tools read it too. A name is used once, so
that nothing is ever looked up before it is written, replaced or purged, and a worker needs no right to do so.
"""

import base64
import hashlib
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Final

import msgspec

from h2kbus.answers import Stored
from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage, RevisionConflict
from subjects.codec import decode
from subjects.topology import Topology

CHUNK_BYTES: Final = 128 * 1024
"""The size of a chunk in NATS's own object stores."""
LARGEST_BYTES: Final = 64 * 1024 * 1024
"""More than any artifact has: one that claims more is not read."""

_OPEN: Final = {"h2kbus": "open"}
_ALGORITHM: Final = "SHA-256="
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


class Artifact(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an object store says of an object, in its own terms. `nuid` names its chunks.

    One that is still being written has a size of 0, and says so in its metadata.
    """

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    metadata: dict[str, str] = {}

    @property
    def is_open(self) -> bool:
        """Whether more was to come when this was stored: the end is stored under the same name."""
        return self.metadata == _OPEN

    @property
    def sha256(self) -> str:
        """The digest in hex; empty for one that is no SHA-256."""
        try:
            raw = base64.urlsafe_b64decode(self.digest.removeprefix(_ALGORITHM))
        except ValueError:
            return ""
        return raw.hex() if self.digest.startswith(_ALGORITHM) else ""


def log_name(job_id: str, attempt: int) -> str:
    """The log of an attempt: the first one is 1."""
    return f"{job_id}/{attempt}/log"


def report_name(job_id: str, attempt: int) -> str:
    """The report of an attempt that succeeded."""
    return f"{job_id}/{attempt}/report"


def manifest_name(job_id: str, attempt: int) -> str:
    """What an attempt was made of: see `subjects.manifest`."""
    return f"{job_id}/{attempt}/manifest"


NAMES: Final[Mapping[str, Callable[[str, int], str]]] = {
    "log": log_name,
    "report": report_name,
    "manifest": manifest_name,
}
"""What an attempt may leave, and how each is called in the store."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that an attempt has left: `name` is log, report or manifest, and `size` is in bytes."""

    attempt: int
    name: str
    stored_at: str
    artifact: Artifact


class Upload:
    """An object on its way into the store: its chunks, each stored once, and then what it is.

    A chunk of which it is not known whether it was stored may be written again.
    """

    def __init__(self, connection: Connection, topology: Topology, name: str) -> None:
        self.size = 0
        self._connection = connection
        self._topology = topology
        self._name = name
        self._nuid = secrets.token_hex(11)
        self._chunks = 0
        self._seen = hashlib.sha256()
        self._last: int | None = 0
        self._unsure = False

    @property
    def chunks_subject(self) -> str:
        return _chunks_at(self._topology, self._nuid)

    async def write(self, chunk: bytes) -> None:
        """Store at most `CHUNK_BYTES` more. Raises BusError; then only the same chunk may come next."""
        was_unsure, self._unsure = self._unsure, True
        expected = {} if self._last is None else {_EXPECTED: str(self._last)}
        try:
            self._last = await self._connection.publish(self.chunks_subject, chunk, expected)
        except RevisionConflict:
            if not was_unsure:
                raise
            # It had been stored, and only the answer was lost; under which number, nobody says.
            self._last = None
        self._unsure = False
        self._chunks += 1
        self.size += len(chunk)
        self._seen.update(chunk)

    async def announce(self) -> None:
        """Store that it is on its way, so that what there is of it can be read already. Raises BusError."""
        begun = Artifact(
            self._name,
            self._topology.artifacts_store,
            self._nuid,
            0,
            0,
            _digest(hashlib.sha256().digest()),
            _OPEN,
        )
        await self._describe(begun)

    async def finish(self) -> Artifact:
        """Store what the object is, so that it is found. Raises BusError, and may be called again."""
        digest = _digest(self._seen.digest())
        store = self._topology.artifacts_store
        made = Artifact(self._name, store, self._nuid, self.size, self._chunks, digest)
        await self._describe(made)
        return made

    async def _describe(self, artifact: Artifact) -> None:
        subject = _described_at(self._topology, self._name)
        await self._connection.publish(subject, msgspec.json.encode(artifact))


async def put(
    connection: Connection, topology: Topology, name: str, source: bytes | AsyncIterable[bytes]
) -> Artifact:
    """Store an object under a name that has none, a chunk in memory at a time. Raises BusError."""
    upload = Upload(connection, topology, name)
    async for piece in _pieces(source):
        for start in range(0, len(piece), CHUNK_BYTES):
            await upload.write(piece[start : start + CHUNK_BYTES])
    return await upload.finish()


async def _pieces(source: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    async for piece in source:
        yield piece


async def kept_of(connection: Connection, topology: Topology, job_id: str, attempts: int) -> list[Kept]:
    """What a job's attempts have left, up to the number of the last one. Raises BusError, InvalidMessage.

    It is looked up by name, so that the artifacts of other jobs are not read for it.
    """
    asked = [(number, each) for number in range(1, attempts + 1) for each in NAMES]
    subjects = [_described_at(topology, NAMES[each](job_id, number)) for number, each in asked]
    found = await connection.get_last_together(_stream(topology), subjects)
    return [
        Kept(attempt=number, name=each, stored_at=stored.time, artifact=decode(Artifact, stored.data))
        for (number, each), stored in zip(asked, found, strict=True)
        if stored is not None and stored.data
    ]


async def find(connection: Connection, topology: Topology, name: str) -> Artifact | None:
    """What is stored under a name, or None. Raises BusError, InvalidMessage for what is no description."""
    stored = await connection.get_last(_stream(topology), _described_at(topology, name))
    return decode(Artifact, stored.data) if stored is not None and stored.data else None


async def read(connection: Connection, topology: Topology, artifact: Artifact) -> AsyncIterator[bytes]:
    """The content, chunk by chunk. Raises BusError at its end when it is not what was stored.

    Raises InvalidMessage for what is no artifact, or is still being written.
    """
    if artifact.size > LARGEST_BYTES:
        raise InvalidMessage(f"{artifact.name} is no artifact of ours")
    if artifact.is_open:
        raise InvalidMessage(f"{artifact.name} is not finished: `h2kbus logs --follow` shows what there is")
    seen, size = hashlib.sha256(), 0
    async for stored in chunks_of(connection, topology, artifact):
        size += len(stored.data)
        if size > artifact.size:
            break
        seen.update(stored.data)
        yield stored.data
    if (size, _digest(seen.digest())) != (artifact.size, artifact.digest):
        raise BusError(f"{artifact.name} is damaged: it has expired in part, or was changed")


def chunks_of(
    connection: Connection, topology: Topology, artifact: Artifact, after: int = 0
) -> AsyncIterator[Stored]:
    """What is stored of the content so far, whatever that is: chunks with sequences above `after`.

    Raises InvalidMessage for a description that leads elsewhere.
    """
    if not artifact.nuid.isalnum():
        raise InvalidMessage(f"{artifact.name} is no artifact of ours")
    return connection.read(_stream(topology), _chunks_at(topology, artifact.nuid), after=after)


def _stream(topology: Topology) -> str:
    return f"OBJ_{topology.artifacts_store}"


def _chunks_at(topology: Topology, nuid: str) -> str:
    return f"$O.{topology.artifacts_store}.C.{nuid}"


def _described_at(topology: Topology, name: str) -> str:
    return f"$O.{topology.artifacts_store}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def _digest(sha256: bytes) -> str:
    return f"{_ALGORITHM}{base64.urlsafe_b64encode(sha256).decode()}"
