"""Pulling from JetStream consumers: our own small module, since nats-py's `fetch` cannot do what we need.

It cannot pull without waiting, knows no priority groups, and reports a refused pull only when its whole
time has passed. Here one inbox serves all pulls of a process and every status message is read as it comes.

A delivered message carries its own subject, not the inbox's, so it cannot be told which pull it answers;
it is counted for the oldest one of its consumer, as the server serves them.
"""

import asyncio
import itertools
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final

import anyio
import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from h2kbus.answers import status_of
from h2kbus.connection import Connection
from h2kbus.errors import PermissionDenied
from h2kbus.inbox import denial

ANSWER_SECONDS: Final = 2.0
"""How much later than it should the server may answer before it is not waited for any more."""
CONFIRM_SECONDS: Final = 3.0

# $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.… ; a domain and an account come before in longer ones.
_SHORT_ACK: Final = 9
_EXPECTED_ENDS: Final = frozenset({"404", "408"})


class Delivery(msgspec.Struct, frozen=True):
    """One message handed out by a consumer, and how to answer for it.

    `times_delivered` is 1 for the first delivery, as the server counts. `stored_at` is the server's time of
    the message in seconds since 1970. `headers` are the sender's.
    """

    connection: Connection
    subject: str
    data: bytes
    reply: str
    consumer: str
    times_delivered: int
    stored_at: float = 0.0
    headers: dict[str, str] | None = None

    async def ack(self) -> None:
        """Remove the message, confirmed. Only for what is settled: even a stale holder's ack removes it."""
        await self.connection.ask(self.reply, b"+ACK", timeout=CONFIRM_SECONDS)

    async def ack_unconfirmed(self) -> None:
        """Remove the message; should this get lost, a redelivery finds the work done."""
        await self.connection.publish_unconfirmed(self.reply, b"+ACK")

    async def nak(self, delay_seconds: float = 0.0) -> None:
        """Give the message back, to be delivered again after the delay."""
        delay = b' {"delay":%d}' % int(delay_seconds * 1e9) if delay_seconds > 0 else b""
        await self.connection.publish_unconfirmed(self.reply, b"-NAK" + delay)

    async def in_progress(self) -> None:
        """Start the consumer's `ack_wait` anew."""
        await self.connection.publish_unconfirmed(self.reply, b"+WPI")


class PullRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of a pull, in JetStream's own terms; `expires` is in nanoseconds."""

    batch: int
    max_bytes: int = 0
    expires: int = 0
    no_wait: bool = False
    group: str = ""
    priority: int = 0


class Pull:
    """One pull that the server holds. It is over when its batch is full or when the server says so.

    `failed` tells an unexpected end: the consumer is gone, or the server cannot serve it now. `lapsed` says
    that nobody told of its end, but its time has passed or the connection was lost. `denied` is why, when
    this user may not pull from it.
    """

    def __init__(self, consumer: str, batch: int) -> None:
        self.consumer = consumer
        self.left = batch
        self.failed = False
        self.lapsed = False
        self.denied: PermissionDenied | None = None
        self.over = False
        self._waiter: anyio.Event | None = None

    def end(self) -> None:
        self.over = True
        if self._waiter is not None:
            self._waiter.set()

    async def wait(self) -> None:
        """Wait until it is over; one that the server forgets is over a little after its time.

        Raises PermissionDenied.
        """
        if not self.over:
            self._waiter = anyio.Event()
            await self._waiter.wait()
        if self.denied is not None:
            raise self.denied


class PullInbox:
    """All pulls of one process on one stream. Messages go to `on_delivery`, ends of pulls to `on_end`."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        on_delivery: Callable[[Delivery], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._on_delivery = on_delivery
        self._on_end = on_end
        self._prefix = connection.nats.new_inbox()
        self._subscription: Subscription | None = None
        self._tokens = itertools.count()
        self._pulls: dict[str, Pull] = {}
        self._by_consumer: defaultdict[str, deque[Pull]] = defaultdict(deque)

    async def open(self) -> None:
        """Subscribe; `close` must follow."""
        self._subscription = await self._connection.listen(f"{self._prefix}.*", self._on_message)
        self._connection.on_reconnect.append(self._forget_all)
        self._connection.on_denied.append(self._deny)

    async def close(self) -> None:
        """Make the server forget every pull, once what it has sent already has been handed over.

        A pull that is left behind would be given messages that nobody reads.
        """
        self._connection.on_reconnect.remove(self._forget_all)
        self._connection.on_denied.remove(self._deny)
        if self._subscription is not None:
            await self._connection.drain(self._subscription)

    async def send(self, consumer: str, request: PullRequest) -> Pull:
        """Send one pull and return it; what it brings goes to `on_delivery`."""
        token = str(next(self._tokens))
        pull = self._pulls[token] = Pull(consumer, request.batch)
        self._by_consumer[consumer].append(pull)
        asyncio.get_running_loop().call_later(request.expires / 1e9 + ANSWER_SECONDS, self._lapse, token)
        await self._connection.publish_unconfirmed(
            self._subject(consumer), msgspec.json.encode(request), f"{self._prefix}.{token}"
        )
        return pull

    def _subject(self, consumer: str) -> str:
        return f"{self._connection.api_prefix}.CONSUMER.MSG.NEXT.{self._stream}.{consumer}"

    def _deny(self, subject: str) -> bool:
        """The server refused pulls from one of the consumers."""
        denied = [
            (token, pull)
            for token, pull in self._pulls.items()
            if self._subject(pull.consumer).lower() == subject
        ]
        for token, pull in denied:
            pull.denied = denial(self._subject(pull.consumer))
            self._end(token, None)
        return bool(denied)

    def _on_message(self, message: Msg) -> None:
        if message.subject.startswith(self._prefix):
            self._end(message.subject[len(self._prefix) + 1 :], status_of(message))
            return
        delivery = read_delivery(self._connection, message)
        waiting = self._by_consumer[delivery.consumer]
        if waiting:
            waiting[0].left -= 1
            if waiting[0].left == 0:
                self._drop(waiting[0])
        self._on_delivery(delivery)

    def _lapse(self, token: str) -> None:
        pull = self._pulls.get(token)
        if pull is not None:
            pull.lapsed = not pull.over
            self._end(token, "408")

    def _end(self, token: str, status: str | None) -> None:
        pull = self._pulls.pop(token, None)
        if pull is not None and not pull.over:
            pull.failed = status not in _EXPECTED_ENDS
            self._drop(pull)

    def _drop(self, pull: Pull) -> None:
        self._by_consumer[pull.consumer].remove(pull)
        pull.end()
        self._on_end()

    def _forget_all(self) -> None:
        """After a reconnection the server knows none of our pulls."""
        for token in list(self._pulls):
            self._lapse(token)


class Place(msgspec.Struct, frozen=True):
    """Where a delivered message stands: its sequence in the stream, and how many come after it."""

    sequence: int
    pending: int


def place_of(reply: str) -> Place:
    """What the server says of a delivered message's place in its reply subject."""
    parts = reply.split(".")
    start = 2 if len(parts) == _SHORT_ACK else 4
    return Place(int(parts[start + 3]), int(parts[start + 6]))


def read_delivery(connection: Connection, message: Msg) -> Delivery:
    """Read what the server says of a message in its reply subject."""
    parts = message.reply.split(".")
    start = 2 if len(parts) == _SHORT_ACK else 4
    return Delivery(
        connection,
        message.subject,
        message.data,
        message.reply,
        consumer=parts[start + 1],
        times_delivered=int(parts[start + 2]),
        stored_at=int(parts[start + 5]) / 1e9,
        headers=message.headers,
    )
