"""QEMU's control protocol (QMP), over the stdin and stdout of the emulator."""

from collections import deque
from typing import Any, Final

import anyio
import msgspec

from h2kbus.errors import ErrorCode, InvalidMessage, OperationFailed
from subjects.codec import decode
from workers.conversation import Conversation
from workers.joblog import printable

COMMAND_SECONDS: Final = 60.0
"""How long one command may take; a host that is busy with other guests answers late."""

QUIT_SECONDS: Final = 5.0
MAX_EVENTS: Final = 10_000
"""More than a machine has to tell before somebody listens; a guest may make it talk."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened in the machine by itself, such as SHUTDOWN."""

    name: str
    data: dict[str, Any] = {}


class _Refusal(msgspec.Struct, frozen=True):
    desc: str = ""


class _Numbers(msgspec.Struct, frozen=True):
    major: int
    minor: int
    micro: int


class _Version(msgspec.Struct, frozen=True):
    qemu: _Numbers


class _Greeting(msgspec.Struct, frozen=True):
    version: _Version


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    """One line of QEMU: its greeting, an event, an answer or a refusal."""

    greeting: _Greeting | None = msgspec.field(default=None, name="QMP")
    event: str | None = None
    data: dict[str, Any] = {}
    id: int | None = None
    answer: Any = msgspec.field(default=None, name="return")
    error: _Refusal | None = None


class Qmp:
    """Sends commands and collects events. Only one task may use it.

    Its calls raise TOOL_FAILED when QEMU ends, refuses, talks nonsense or does not answer in time.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._events: deque[Event] = deque()
        self._last_id = 0

    async def greet(self) -> str:
        """Open the talk, and return QEMU's version."""
        with anyio.move_on_after(COMMAND_SECONDS):
            greeting = (await self._receive()).greeting
            if greeting is None:
                raise _failed("it greets in an unknown way")
            await self.execute("qmp_capabilities")
            version = greeting.version.qemu
            return f"{version.major}.{version.minor}.{version.micro}"
        raise _failed(f"it did not greet within {COMMAND_SECONDS:g} s")

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Have a command done, and return its answer."""
        self._last_id += 1
        request = {"execute": command, "arguments": arguments, "id": self._last_id}
        with anyio.move_on_after(COMMAND_SECONDS):
            await self._conversation.send(msgspec.json.encode(request))
            return await self._answer(command)
        raise _failed(f"it did not answer {command} within {COMMAND_SECONDS:g} s")

    async def next_event(self) -> Event:
        """Wait for the next event. It may be cancelled without losing one."""
        while not self._events:
            self._keep(await self._receive())
        return self._events.popleft()

    async def quit(self) -> None:
        """End QEMU, which answers nothing more. One that does not end is left to be killed."""
        with anyio.move_on_after(QUIT_SECONDS):
            try:
                await self.execute("quit")
                while True:
                    await self._receive()
            except OperationFailed:
                return

    async def _answer(self, command: str) -> Any:
        while True:
            message = await self._receive()
            self._keep(message)
            if message.id != self._last_id:
                continue
            if message.error is not None:
                raise _failed(f"it refused {command}: {message.error.desc}")
            return message.answer

    def _keep(self, message: _Message) -> None:
        if message.event is not None:
            self._events.append(Event(name=message.event, data=message.data))
        if len(self._events) > MAX_EVENTS:
            raise _failed(f"it told of more than {MAX_EVENTS} events at once")

    async def _receive(self) -> _Message:
        line = await self._conversation.receive()
        try:
            return decode(_Message, line)
        except InvalidMessage:
            words = printable(line.decode("utf-8", "replace"))[:200]
            raise _failed(f"it said what is no QMP: {words}") from None


def _failed(words: str) -> OperationFailed:
    return OperationFailed(ErrorCode.TOOL_FAILED, f"qemu: {words}")
