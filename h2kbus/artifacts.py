"""The fleet's object store: what attempts leave for people to read later, such as their logs.

It is written and read as NATS's own object stores are, so that its tools read it too. A name is used once, so
that nothing is ever looked up before it is written, replaced or purged, and a worker needs no right to do so.
"""

import base64
import hashlib
import secrets
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage
from subjects.codec import decode
from subjects.topology import Topology

CHUNK_BYTES: Final = 128 * 1024
"""The size of a chunk in NATS's own object stores."""
LARGEST_BYTES: Final = 64 * 1024 * 1024
"""More than any artifact has: one that claims more is not read."""


class Artifact(msgspec.Struct, frozen=True):
    """What an object store says of an object, in its own terms; `nuid` names its chunks."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str


def log_name(job_id: str, attempt: int) -> str:
    """The log of an attempt: the first one is 1."""
    return f"{job_id}/{attempt}/log"


async def put(connection: Connection, topology: Topology, name: str, data: bytes) -> None:
    """Store an object under a name that has none: its chunks first, then what it is. Raises BusError."""
    store, nuid = topology.artifacts_store, secrets.token_hex(11)
    chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    for chunk in chunks:
        await connection.publish(f"$O.{store}.C.{nuid}", chunk)
    digest = _digest(hashlib.sha256(data).digest())
    info = Artifact(name, store, nuid, len(data), len(chunks), digest)
    await connection.publish(_described_at(topology, name), msgspec.json.encode(info))


async def find(connection: Connection, topology: Topology, name: str) -> Artifact | None:
    """What is stored under a name, or None. Raises BusError, InvalidMessage for what is no description."""
    stored = await connection.get_last(_stream(topology), _described_at(topology, name))
    return decode(Artifact, stored.data) if stored is not None and stored.data else None


async def read(connection: Connection, topology: Topology, artifact: Artifact) -> AsyncIterator[bytes]:
    """The content, chunk by chunk. Raises BusError at its end when it is not what was stored."""
    if artifact.size > LARGEST_BYTES or not artifact.nuid.isalnum():
        raise InvalidMessage(f"{artifact.name} is no artifact of ours")
    seen, size = hashlib.sha256(), 0
    chunks = f"$O.{topology.artifacts_store}.C.{artifact.nuid}"
    async for stored in connection.read(_stream(topology), chunks):
        size += len(stored.data)
        if size > artifact.size:
            break
        seen.update(stored.data)
        yield stored.data
    if (size, _digest(seen.digest())) != (artifact.size, artifact.digest):
        raise BusError(f"{artifact.name} is damaged: it has expired in part, or was changed")


def _stream(topology: Topology) -> str:
    return f"OBJ_{topology.artifacts_store}"


def _described_at(topology: Topology, name: str) -> str:
    return f"$O.{topology.artifacts_store}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def _digest(sha256: bytes) -> str:
    return f"SHA-256={base64.urlsafe_b64encode(sha256).decode()}"
