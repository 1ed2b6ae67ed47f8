"""Requests and their answers over one wildcard subscription.

JetStream answers every durable publish. The NATS client's own request costs about twice the time of
this, because it makes a timer task for each; here one subscription and one timer serve all requests
of a connection, so that thousands can be on their way at once.
"""

import asyncio
import functools
import itertools
from collections.abc import Callable
from typing import Final

import msgspec
from nats.aio.msg import Msg

from h2kbus.errors import BusError, BusTimeout, PermissionDenied
from h2kbus.wire import MessageHandler, WireClient

Outgoing = tuple[str, bytes] | tuple[str, bytes, dict[str, str] | None]
"""A message to publish: its subject, its payload, and its headers if it has any."""

SWEEP_SECONDS: Final = 0.25
"""How often overdue requests are looked for; a deadline is kept to within this."""


async def settled(answer: "asyncio.Future[Msg]") -> Msg | BusError:
    """An answer or what went wrong with it, as a value: so that none of several is left unheard."""
    try:
        return await answer
    except BusError as error:
        return error


def raised(outcome: Msg | BusError) -> Msg:
    """The answer, or the error raised."""
    if isinstance(outcome, BusError):
        raise outcome
    return outcome


def denial(subject: str) -> PermissionDenied:
    """The server's refusal of a subject, by name."""
    return PermissionDenied(f"this user may not use {subject}")


class _Request(msgspec.Struct, frozen=True):
    answer: "asyncio.Future[Msg]"
    subject: str
    deadline: float


class Inbox:
    """Correlates answers with requests by the last token of the reply subject."""

    def __init__(self, nats: WireClient) -> None:
        self._nats = nats
        self._prefix = ""
        self._tokens = itertools.count()
        self._handlers: dict[str, MessageHandler] = {}
        self._waiting: dict[str, _Request] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> str:
        """Subscribe, and watch the deadlines until `stop`; returns the subject that answers arrive on.

        The prefix is known once the client is connected.
        """
        self._prefix = self._nats.new_inbox()
        self._loop = asyncio.get_running_loop()
        self._sweep(self._loop)
        subject = f"{self._prefix}.*"
        await self._nats.listen(subject, self._on_message)
        return subject

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def ask(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, timeout: float
    ) -> Msg:
        """Publish with a reply subject and wait for the answer, `timeout` seconds at the most.

        Raises BusTimeout when no answer came (the request may have been carried out all the same) and
        PermissionDenied when the server refused the subject.
        """
        return await (await self.begin(subject, payload, headers, timeout=timeout))

    async def begin(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, timeout: float
    ) -> "asyncio.Future[Msg]":
        """Like `ask`, but return the answer's future once the request is on its way."""
        # Asking for the running loop is a system call up to Python 3.11, and this is a hot path.
        loop = self._loop or asyncio.get_running_loop()
        token = str(next(self._tokens))
        answer: asyncio.Future[Msg] = loop.create_future()
        self._waiting[token] = _Request(answer, subject, loop.time() + timeout)
        try:
            await self._nats.publish(subject, payload, f"{self._prefix}.{token}", headers)
        except BaseException:
            self._waiting.pop(token, None)
            raise
        return answer

    def open(self, handler: MessageHandler) -> tuple[str, Callable[[], object]]:
        """A reply subject for many answers, and the call that closes it."""
        token = f"m{next(self._tokens)}"
        self._handlers[token] = handler
        return f"{self._prefix}.{token}", functools.partial(self._handlers.pop, token, None)

    async def ask_many(
        self, subject: str, payload: bytes, take: Callable[[Msg], bool], *, timeout: float
    ) -> Msg:
        """Publish and hand every answer to `take` until it says that one was the last, which is returned.

        Raises what `ask` raises: BusTimeout unless the last one arrives within `timeout` seconds.
        """
        last: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        def on_answer(message: Msg) -> None:
            if take(message) and not last.done():
                last.set_result(message)

        reply, close = self.open(on_answer)
        token = reply.rpartition(".")[2]
        self._waiting[token] = _Request(last, subject, asyncio.get_running_loop().time() + timeout)
        try:
            await self._nats.publish(subject, payload, reply)
            return await last
        finally:
            self._waiting.pop(token, None)
            close()

    def fail_all(self, reason: str) -> None:
        """The connection is gone: whoever waits learns it now, not at the end of the deadline."""
        for token in list(self._waiting):
            self._fail(token, BusTimeout(reason))

    def fail_denied(self, subject: str) -> bool:
        """The server refused to let us publish on `subject`, given in lower case; false if nobody waits."""
        denied = [token for token, each in self._waiting.items() if each.subject.lower() == subject]
        for token in denied:
            self._fail(token, denial(self._waiting[token].subject))
        return bool(denied)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail what is overdue and forget what nobody waits for any more."""
        now = loop.time()
        for token, request in list(self._waiting.items()):
            if request.deadline < now or request.answer.done():
                self._fail(token, BusTimeout(f"the server did not answer on {request.subject} in time"))
        self._timer = loop.call_later(SWEEP_SECONDS, self._sweep, loop)

    def _fail(self, token: str, error: BusError) -> None:
        request = self._waiting.pop(token, None)
        if request and not request.answer.done():
            request.answer.set_exception(error)

    def _on_message(self, message: Msg) -> None:
        token = message.subject[len(self._prefix) + 1 :]
        handler = self._handlers.get(token)
        if handler is not None:
            handler(message)
            return
        request = self._waiting.pop(token, None)
        if request is not None and not request.answer.done():
            request.answer.set_result(message)
