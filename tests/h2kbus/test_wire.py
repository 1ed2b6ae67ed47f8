"""The short way through the NATS client brings and sends what the client's own way does."""

import asyncio
import itertools
from typing import Any

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from h2kbus.connection import Connection
from h2kbus.wire import CROWDED_BYTES, WireClient, WireParser
from subjects.topology import Topology
from tests.conftest import Fleet

WORDS = st.text("abcXYZ019_-$.>", min_size=1, max_size=12)
VALUES = st.text(st.characters(exclude_categories=["C"]), max_size=8)
PAYLOADS = st.binary(max_size=60) | st.sampled_from([b"\r\n", b"MSG a 1 2\r\n", b"", b"x" * 5000])
HEADERS = st.dictionaries(st.text("abcXYZ-", min_size=1, max_size=8), VALUES, max_size=3)
STATUS = st.sampled_from(["", " 404 No Messages", " 409 Message Size Exceeds MaxBytes"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """One message as a server sends it."""
    subject, number, reply = draw(WORDS), draw(st.sampled_from([1, 2, 30])), draw(st.none() | WORDS)
    payload, status, headers = draw(PAYLOADS), draw(STATUS), draw(st.none() | HEADERS)
    words = [subject, str(number), *([reply] if reply else [])]
    if headers is None:
        return f"MSG {' '.join(words)} {len(payload)}\r\n".encode() + payload + b"\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    block = f"NATS/1.0{status}\r\n{lines}\r\n".encode()
    line = f"HMSG {' '.join(words)} {len(block)} {len(block) + len(payload)}\r\n"
    return line.encode() + block + payload + b"\r\n"


LINES = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'Permissions Violation'\r\n"])


class Seen:
    """What a parser makes of a stream, told by the calls that it makes of its client."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.handlers = {1: self._handle}
        self._own = Client()

    def _handle(self, message: Msg) -> None:
        self.calls.append((1, message.subject, message.reply, message.data, message.headers or None))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, raw: bytes) -> None:
        headers = await self._own._process_headers(raw)
        self.calls.append((sid, subject.decode(), reply.decode(), data, headers))

    async def _process_err(self, words: str) -> None:
        self.calls.append(("error", words))

    async def _process_ping(self) -> None:
        self.calls.append(("ping",))

    async def _process_pong(self) -> None:
        self.calls.append(("pong",))

    async def _error_cb(self, error: Exception) -> None:
        self.calls.append(("raised", str(error)))


async def read(parser: type[Parser], parts: list[bytes]) -> list[tuple[Any, ...]]:
    seen = Seen()
    reader = parser(seen)
    for part in parts:
        await reader.parse(part)
    return seen.calls


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(each % (len(stream) + 1) for each in cuts), len(stream)]
    return [stream[start:stop] for start, stop in itertools.pairwise(places)]


@given(
    st.lists(messages() | LINES, max_size=6),
    st.lists(st.integers(0, 20_000), max_size=8),
    st.integers(0, 30),
)
@example([b"MSG a 1 3\r\nabc\r\n"], [11, 14, 15], 0)
@example([b"PING\r\n", b"MSG a 2 0\r\n\r\n"], [1, 5], 1)
def test_any_stream_cut_anywhere_is_read_as_the_client_reads_it(
    stream: list[bytes], cuts: list[int], missing: int
) -> None:
    whole = b"".join(stream)
    parts = cut(whole[: len(whole) - missing], cuts)
    assert anyio.run(read, WireParser, parts) == anyio.run(read, Parser, parts)


def test_status_may_stand_alone_before_headers() -> None:
    data = b"HMSG a 1 22 22\r\nNATS/1.0 404\r\nX: y\r\n\r\n\r\n"
    assert anyio.run(read, WireParser, [data]) == [(1, "a", "", b"", {"Status": "404", "X": "y"})]


def test_header_of_a_sender_is_no_status_of_the_server() -> None:
    block = b"NATS/1.0\r\nStatus: 404\r\nDescription: gone\r\nX: y\r\n\r\n"
    data = b"HMSG a 1 %d %d\r\n%s\r\n" % (len(block), len(block), block)
    assert anyio.run(read, WireParser, [data]) == [(1, "a", "", b"", {"X": "y"})]


@pytest.mark.anyio
async def test_stored_message_is_found_whatever_its_headers_say(
    connection: Connection, topology: Topology, running: Fleet
) -> None:
    subject = topology.grammar.progress("j1")
    forged = {"Status": "404", "Nats-Sequence": "77", "Nats-Subject": "another"}
    sequence = await connection.publish(subject, b"{}", forged)
    found = await connection.get_last(topology.progress_stream, subject)
    assert found is not None
    assert (found.seq, found.subject, found.data) == (sequence, subject, b"{}")


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\x0bb", b"a\x0cb"])
def test_subject_of_any_bytes_does_not_end_the_reading(name: bytes) -> None:
    data = b"MSG %s 1 %s 1\r\nx\r\nMSG b 1 1\r\ny\r\n" % (name, name)
    text = name.decode("utf-8", "replace")
    assert anyio.run(read, WireParser, [data]) == [(1, text, text, b"x", None), (1, "b", "", b"y", None)]


@pytest.mark.parametrize(
    "line", [b"HELLO there\r\n", b"MSG\r\n", b"MSG a\r\n", b"MSG a x 1\r\nb\r\n", b"HMSG a 1 x 1\r\nb\r\n"]
)
def test_line_that_is_none_of_the_protocol_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        anyio.run(read, WireParser, [line])


def test_nothing_is_kept_of_a_connection_that_was_lost() -> None:
    async def lose() -> list[tuple[Any, ...]]:
        seen = Seen()
        parser = WireParser(seen)
        await parser.parse(b"MSG a 1 10\r\nabc")
        parser.reset()
        await parser.parse(b"MSG b 1 1\r\nx\r\n")
        return seen.calls

    assert anyio.run(lose) == [(1, "b", "", b"x", None)]


def test_rest_of_what_was_read_is_dropped_when_an_error_ends_the_connection() -> None:
    async def fail() -> list[tuple[Any, ...]]:
        seen = Seen()
        parser = WireParser(seen)

        async def on_error(words: str) -> None:
            seen.calls.append(("error", words))
            parser.reset()

        seen._process_err = on_error  # type: ignore[method-assign]
        await parser.parse(b"-ERR 'Stale Connection'\r\nMSG a 1 1\r\nx\r\nMSG a 1 9\r\nx")
        await parser.parse(b"PING\r\n")
        return seen.calls

    assert anyio.run(fail) == [("error", "'stale connection'"), ("ping",)]


class Sent(WireClient):
    """A client that looks connected, and keeps what it would send."""

    def __init__(self) -> None:
        super().__init__()
        self._status = Client.CONNECTED
        self._flush_queue = asyncio.Queue()
        self._flusher_task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))

    async def end(self) -> None:
        if self._flusher_task is not None:
            self._flusher_task.cancel()


@given(WORDS, WORDS | st.just(""), PAYLOADS, st.none() | HEADERS)
def test_what_is_sent_is_what_the_client_sends(
    subject: str, reply: str, payload: bytes, headers: dict[str, str] | None
) -> None:
    async def both() -> list[list[bytes]]:
        sent = []
        for publish in (WireClient.publish, Client.publish):
            client = Sent()
            tidy = {name: value.strip() for name, value in headers.items()} if headers else None
            await publish(client, subject, payload, reply, tidy)
            sent.append(client._pending)
            await client.end()
        return sent

    short, own = anyio.run(both)
    assert short == own


@pytest.mark.anyio
async def test_flood_waits_until_the_server_has_taken_what_is_unsent(
    connection: Connection, topology: Topology
) -> None:
    subject, payload = topology.grammar.control("nobody"), b"x" * (CROWDED_BYTES // 2)
    unsent = 0
    for _ in range(100):
        await connection.publish_unconfirmed(subject, payload)
        unsent = max(unsent, connection.nats._pending_data_size)
    assert unsent <= 3 * CROWDED_BYTES


@pytest.mark.anyio
async def test_defect_of_a_handler_does_not_end_the_reading(
    connection: Connection, topology: Topology
) -> None:
    heard = []

    def handler(message: Msg) -> None:
        heard.append(message.data)
        if message.data == b"first":
            raise ValueError("no")

    subject = topology.grammar.control("w")
    subscription = await connection.listen(subject, handler)
    for word in (b"first", b"second"):
        await connection.publish_unconfirmed(subject, word)
    await connection.flush()
    await subscription.unsubscribe()
    assert heard == [b"first", b"second"]


@pytest.mark.anyio
async def test_nobody_is_called_after_unsubscribing(connection: Connection, topology: Topology) -> None:
    heard: list[bytes] = []
    subject = topology.grammar.control("w")
    subscription = await connection.listen(subject, lambda message: heard.append(message.data))
    await subscription.unsubscribe()
    await connection.publish_unconfirmed(subject, b"late")
    await connection.flush()
    assert heard == []
    assert not connection.nats.handlers.keys() & {subscription._id}


@pytest.mark.anyio
async def test_draining_ends_once_everything_was_handled(connection: Connection, topology: Topology) -> None:
    heard: list[bytes] = []
    subject = topology.grammar.control("w")
    subscription = await connection.listen(subject, lambda message: heard.append(message.data))
    for number in range(500):
        await connection.publish_unconfirmed(subject, b"%d" % number)
    await connection.drain(subscription)
    assert len(heard) == 500


@pytest.mark.anyio
async def test_largest_message_arrives_whole(connection: Connection, topology: Topology) -> None:
    heard: list[bytes] = []
    subject = topology.grammar.control("w")
    await connection.listen(subject, lambda message: heard.append(message.data))
    payload = bytes(range(256)) * (connection.max_payload // 256)
    await connection.publish_unconfirmed(subject, payload)
    await connection.flush()
    assert heard == [payload]
