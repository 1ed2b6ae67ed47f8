"""The NATS client with its two hot paths cut short.

The client moves every message through a queue to a task of its subscription, and its parser shifts all that
it has read for each line of it. Here a message is handled where it is read, and put together in one go when
it is sent (docs/decisions/0037-a-shorter-way-through-the-client.md). Connecting and reconnecting, TLS and
signing in are the client's own, and so is whatever is unusual.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from nats.aio.client import PING_PROTO, Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

MessageHandler = Callable[[Msg], None]

CROWDED_BYTES: Final = 1024 * 1024
"""With more than this unsent, the client's own way is gone: it waits until some of it is sent."""
_VERSION: Final = "NATS/1.0"
_END: Final = b"\r\n"
_STATUS: Final = ("Status", "Description")
"""What a server's own words go under; a sender's header of that name is none of them."""
_MESSAGES: Final = (b"MSG ", b"HMSG ")


class WireClient(Client):
    """A NATS client that calls a plain function for each message of the subscriptions that `listen` makes."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers: dict[int, MessageHandler] = {}
        self._ps: Parser = WireParser(self)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def listen(self, subject: str, handler: MessageHandler) -> Subscription:
        """Subscribe. The handler must not block; what it raises goes to the client's error callback."""
        # The client numbers subscriptions one by one, and a message may be there before the call returns.
        number = self._sid + 1
        self.handlers[number] = handler
        try:
            return await self.subscribe(subject)
        except BaseException:
            self.handlers.pop(number, None)
            raise

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Like the client's own, which is called for whatever is unusual. Headers are not checked."""
        flusher, queue, size = self._flusher_task, self._flush_queue, len(payload)
        if (
            self._status != Client.CONNECTED
            or self._pending_data_size > CROWDED_BYTES
            or size > self._max_payload
            or queue is None
            or flusher is None
            or flusher.done()
        ):
            await super().publish(subject, payload, reply, headers)
            return
        command = _publication(subject, payload, reply, headers, size)
        self._pending.append(command)
        self._pending_data_size += len(command)
        if queue.empty():
            loop = self._loop = self._loop or asyncio.get_running_loop()
            queue.put_nowait(loop.create_future())

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        """Ask behind all that is still unsent; the client asks past it, and is answered too early."""
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self.handlers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)


def _publication(
    subject: str, payload: bytes, reply: str, headers: dict[str, str] | None, size: int
) -> bytes:
    """The protocol's line, the headers and the payload."""
    if not headers:
        return b"".join((f"PUB {subject} {reply} {size}\r\n".encode(), payload, _END))
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    block = f"{_VERSION}\r\n{lines}\r\n".encode()
    line = f"HPUB {subject} {reply} {len(block)} {len(block) + size}\r\n"
    return b"".join((line.encode(), block, payload, _END))


def _headers(block: bytes) -> dict[str, str]:
    """A message's headers, with the status and its words for one of the server's own."""
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    found = {}
    status = first[len(_VERSION) :].split(maxsplit=1)
    if status:
        found = dict(zip(_STATUS, status, strict=False))
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name not in _STATUS:
            found[name] = value.strip()
    return found


class WireParser(Parser):
    """Hands whole messages to their handlers. Other lines are left to the client's own parser."""

    nc: WireClient

    def reset(self) -> None:
        """Forget what has been read, as after the connection was lost."""
        super().reset()
        self._parts: list[bytes] = []
        self._missing = 0
        self._is_reset = True

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read. A message that is not whole waits for the rest of it."""
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._parts)
            self._parts = []
        self._is_reset, at = False, 0
        while not self._is_reset and (end := data.find(_END, at)) >= 0:
            if data.startswith(_MESSAGES, at):
                after = await self._message(data, at, end)
                if after > len(data):
                    self._wait_for(after - len(data), data[at:])
                    return
                at = after
            else:
                line = data[at : end + 2]
                at = end + 2
                await super().parse(line)
        if not self._is_reset and at < len(data):
            self._wait_for(1, data[at:])

    def _wait_for(self, missing: int, part: bytes) -> None:
        self._parts, self._missing = [part], missing

    async def _message(self, data: bytes, at: int, end: int) -> int:
        """Handle the message whose line is there; returns where it ends, also if that is not read yet."""
        # A server parts words by one space; whatever else stands in a subject is its sender's.
        words, headers = data[at:end].split(b" "), b""
        try:
            start, stop = end + 2, end + 2 + int(words[-1])
            if stop + 2 > len(data):
                return stop + 2
            fixed = 4
            if words[0] == b"HMSG":
                fixed, body = 5, start + int(words[-2])
                headers, start = data[start:body], body
            subject, number = words[1], int(words[2])
        except (ValueError, IndexError):
            raise ProtocolError("the line of a message cannot be read") from None
        reply = words[3] if len(words) > fixed else b""
        handler = self.nc.handlers.get(number)
        if handler is None:
            await self.nc._process_msg(number, subject, reply, data[start:stop], headers)  # noqa: SLF001
            return stop + 2
        message = Msg(
            _client=self.nc,
            # Anybody may write bytes that are no text there, and they must not end the reading.
            subject=subject.decode("utf-8", "replace"),
            reply=reply.decode("utf-8", "replace"),
            data=data[start:stop],
            headers=_headers(headers) if headers else None,
        )
        try:
            handler(message)
        except Exception as error:  # noqa: BLE001 - like the client: no handler's defect ends the reading
            await self.nc._error_cb(error)  # noqa: SLF001 - where the client takes what callbacks raise
        return stop + 2
