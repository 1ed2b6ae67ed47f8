"""A bus as files: taken from its server while it runs, and given to another one, a cluster for instance.

Each stream becomes a directory with `backup.json` and `stream.tar.s2`, as NATS's own tools write and read
them: messages, sequences and consumers. Revisions stay what they were, and so do fencing tokens.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from nats.aio.msg import Msg

from h2kbus.answers import ApiError, error_of
from h2kbus.connection import CLOSE_SECONDS, Connection
from h2kbus.errors import (
    BusError,
    BusTimeout,
    ContractConflict,
    InvalidMessage,
    NotProvisioned,
    SettingsError,
)
from subjects.codec import decode
from subjects.topology import Topology

CHUNK_BYTES: Final = 128 * 1024
"""What the server sends at once, and what is sent to it. A server takes messages of 1 MiB by default."""
CHUNK_SECONDS: Final = 30.0
START_SECONDS: Final = 60.0
"""A server checks a stream's checksums before it sends the first of it, and reads it in after the last."""

_DESCRIPTION: Final = "backup.json"
_CONTENT: Final = "stream.tar.s2"


class StoredStream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of a backup. `size_bytes` is what its file takes."""

    stream: str
    messages: int
    consumers: int
    size_bytes: int


class _Config(msgspec.Struct, frozen=True):
    name: str


class _State(msgspec.Struct, frozen=True):
    messages: int
    consumer_count: int = 0


class _Description(msgspec.Struct, frozen=True):
    """What is needed of a stream's description; the server reads the rest."""

    config: _Config
    state: _State


async def back_up(connection: Connection, topology: Topology, directory: Path) -> AsyncIterator[StoredStream]:
    """Write every stream of the bus below a new directory, and tell of each when it is there.

    A job is never lost by the bus going on meanwhile: commands and lanes come before the records, so that
    what moved on is found in its later place, and what is in two is told apart by its record. Raises
    SettingsError for a directory that exists, NotProvisioned when a stream is missing.
    """
    try:
        await anyio.Path(directory).mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise SettingsError(f"{directory} cannot be made: {error.strerror}") from None
    for stream in topology.streams():
        place = directory / stream.name
        await anyio.Path(place).mkdir()
        yield await _take(connection, stream.name, place)


async def _take(connection: Connection, stream: str, place: Path) -> StoredStream:
    chunks: asyncio.Queue[Msg] = asyncio.Queue()
    # The server looks for a subscription to this very subject, and waits two seconds where it finds none.
    reply = connection.nats.new_inbox()
    subscription = await connection.listen(reply, chunks.put_nowait)
    try:
        request = {"deliver_subject": reply, "chunk_size": CHUNK_BYTES, "jsck": True}
        try:
            told = await connection.api(f"STREAM.SNAPSHOT.{stream}", request, timeout=START_SECONDS)
        except KeyError:
            raise NotProvisioned(f"this server has no stream {stream}") from None
        async with await anyio.open_file(place / _CONTENT, "xb") as file:
            async for chunk in _chunks(connection, chunks):
                await file.write(chunk)
            size = await file.tell()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_SECONDS):
            await subscription.unsubscribe()
    described = {"config": told["config"], "state": told["state"]}
    (place / _DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(described)))
    return _stored(described, size)


async def _chunks(connection: Connection, arriving: "asyncio.Queue[Msg]") -> AsyncIterator[bytes]:
    """What the server sends until its empty message; it waits for an answer to each now and then."""
    while True:
        try:
            with anyio.fail_after(CHUNK_SECONDS):
                message = await arriving.get()
        except TimeoutError:
            raise BusTimeout(f"the server sent no more of a stream for {CHUNK_SECONDS:g} s") from None
        if not message.data:
            _require_whole(message)
            return
        yield message.data
        if message.reply:
            await connection.publish_unconfirmed(message.reply, b"")


def _require_whole(last: Msg) -> None:
    """The empty message ends a snapshot; one with a description says why it ends too early."""
    words = (last.headers or {}).get("Description", "")
    status = (last.headers or {}).get("Status", "")
    if status and not status.startswith("2"):
        raise BusError(f"the server gave a stream up: {words or status}")


async def restore(
    connection: Connection, topology: Topology, directory: Path, replicas: int | None = None
) -> AsyncIterator[StoredStream]:
    """Make every stream of a backup anew on a bus that has none of them; `replicas` gives them more copies.

    Raises SettingsError for a directory that is no whole backup of this root, ContractConflict, before
    anything is made, when the bus has one of the streams already.
    """
    backups = [(stream.name, _described(directory / stream.name)) for stream in topology.streams()]
    for name, _ in backups:
        await _require_missing(connection, name)
    for name, described in backups:
        config = described["config"] | ({"num_replicas": replicas} if replicas else {})
        yield await _give(connection, name, described | {"config": config}, directory / name / _CONTENT)


def _described(place: Path) -> dict[str, Any]:
    try:
        content = (place / _DESCRIPTION).read_bytes()
        name, described = decode(_Description, content).config.name, decode(dict[str, Any], content)
        if not (place / _CONTENT).is_file() or name != place.name:
            raise SettingsError(f"{place} is no whole backup of a stream")
    except OSError as error:
        raise SettingsError(f"{place}: {error.strerror}; the backup of another root?") from None
    except InvalidMessage:
        raise SettingsError(f"{place / _DESCRIPTION} does not describe a stream") from None
    return described


async def _require_missing(connection: Connection, stream: str) -> None:
    try:
        await connection.api(f"STREAM.INFO.{stream}")
    except KeyError:
        return
    raise ContractConflict(f"stream {stream} exists: a backup is restored where no scheduler has been yet")


async def _give(connection: Connection, stream: str, described: dict[str, Any], file: Path) -> StoredStream:
    answer = await connection.api(f"STREAM.RESTORE.{stream}", described, timeout=START_SECONDS)
    target = answer["deliver_subject"]
    async with await anyio.open_file(file, "rb") as opened:
        while chunk := await opened.read(CHUNK_BYTES):
            _require_taken(stream, await connection.ask(target, chunk, timeout=CHUNK_SECONDS))
        size = await opened.tell()
    last = await connection.ask(target, b"", timeout=START_SECONDS)
    _require_taken(stream, last)
    made = msgspec.json.decode(last.data)
    if made["state"]["messages"] != described["state"]["messages"]:
        words = (
            f"stream {stream} has {made['state']['messages']} messages, not {described['state']['messages']}"
        )
        raise BusError(words)
    return _stored(described, size)


def _require_taken(stream: str, answer: Msg) -> None:
    """The server answers with an error, or with nothing, or, at the end, with what it made."""
    if answer.data and (problem := msgspec.json.decode(answer.data).get("error")):
        raise error_of(msgspec.convert(problem, ApiError), stream)


def _stored(described: dict[str, Any], size: int) -> StoredStream:
    state = described["state"]
    return StoredStream(
        stream=described["config"]["name"],
        messages=state["messages"],
        consumers=state.get("consumer_count", 0),
        size_bytes=size,
    )
