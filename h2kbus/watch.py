"""Following a job: what happened so far, then what happens, until it ends. No consumer is created.

The live events come by a plain subscription; the past, and whatever the subscription missed, by direct
gets from the progress stream. Each event's `seq` tells what was seen already.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg

from h2kbus.connection import Connection
from h2kbus.errors import InvalidMessage
from subjects.codec import decode
from subjects.events import ProgressEvent
from subjects.topology import Topology

RESYNC_SECONDS: Final = 2.0
"""After this long without a live event the stream is asked, in case the subscription missed some."""


Closing = Callable[[], Awaitable[ProgressEvent | None]]


class EventFeed:
    """Events of one job, or of all of them (`job_id` `*`), each once and in order per job."""

    def __init__(self, connection: Connection, topology: Topology, job_id: str) -> None:
        self._connection = connection
        self._topology = topology
        self._subject = f"{topology.grammar.root}.progress.{job_id}"
        self._after = 0
        self._seen: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[MemoryObjectReceiveStream[ProgressEvent]]:
        """Subscribe. Events published from here on are in the returned stream until it is closed.

        Raises PermissionDenied.
        """
        send, receive = anyio.create_memory_object_stream[ProgressEvent](math.inf)

        def on_message(message: Msg) -> None:
            event = readable(message.data)
            if event is not None:
                send.send_nowait(event)

        with send, receive:
            subscription = await self._connection.listen(self._subject, on_message)
            try:
                yield receive
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                    await subscription.unsubscribe()

    async def past(self) -> AsyncIterator[ProgressEvent]:
        """What the stream holds and was not seen yet, oldest first."""
        async for stored in self._connection.read(
            self._topology.progress_stream, self._subject, after=self._after
        ):
            self._after = stored.seq
            event = readable(stored.data)
            if event is not None and self.is_new(event):
                yield event

    def is_new(self, event: ProgressEvent) -> bool:
        """Whether this event was not seen; a stale worker's late words never are."""
        if event.seq <= self._seen.get(event.job_id, -1):
            return False
        self._seen[event.job_id] = event.seq
        return True

    async def follow(self, closing: Closing) -> AsyncIterator[ProgressEvent]:
        """The past, then live events, for ever; the caller stops at a terminal state.

        Whenever it has been quiet, `closing` may give the last event of a job whose events have expired.
        """
        async with self.open() as live:
            while True:
                async for event in self.past():
                    yield event
                async for event in self._live(live):
                    yield event
                last = await closing()
                if last is not None and self.is_new(last):
                    yield last

    async def _live(self, live: MemoryObjectReceiveStream[ProgressEvent]) -> AsyncIterator[ProgressEvent]:
        """Live events until there was none for a while."""
        while (event := await next_within(live, RESYNC_SECONDS)) is not None:
            if self.is_new(event):
                yield event


async def next_within(live: MemoryObjectReceiveStream[ProgressEvent], seconds: float) -> ProgressEvent | None:
    """The next live event, or None when there is none for that long."""
    with anyio.move_on_after(seconds):
        return await live.receive()
    return None


def readable(data: bytes) -> ProgressEvent | None:
    """The event, or None for what somebody else put on the subject."""
    try:
        return decode(ProgressEvent, data)
    except InvalidMessage:
        return None
