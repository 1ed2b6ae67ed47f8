"""Talking to a program by lines: what is sent to its stdin, and what it says on its stdout."""

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from h2kbus.errors import ErrorCode, OperationFailed
from workers.child import Child
from workers.joblog import JobLog
from workers.lines import LineSplitter

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""A line longer than this is no answer; the program is hostile or broken."""

_CHUNK: Final = 256 * 1024
_WAITING_LINES: Final = 0
"""Beyond the line in hand: what nobody has asked for yet waits in the program, not here."""
_LOGGED_BYTES: Final = 1024 * 1024


class Conversation:
    """Both ends of a program's talk. Only one task may receive."""

    def __init__(self, child: Child, name: str) -> None:
        self.name = name
        self._child = child
        self._last_words = ""
        self._send_line: MemoryObjectSendStream[bytes]
        self._lines: MemoryObjectReceiveStream[bytes]
        self._send_line, self._lines = anyio.create_memory_object_stream[bytes](_WAITING_LINES)

    async def send(self, line: bytes) -> None:
        """Say one line, without its end. Raises TOOL_FAILED if nobody listens any more."""
        rest = memoryview(line + b"\n")
        descriptor = self._child.stdin
        if descriptor is None:
            raise ValueError("the program was started without a stdin")
        try:
            while rest:
                await anyio.wait_writable(descriptor)
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(descriptor, rest) :]
        except BrokenPipeError:
            raise self._gone() from None

    async def receive(self) -> bytes:
        """The next line that it says. Raises TOOL_FAILED when it has ended."""
        try:
            return await self._lines.receive()
        except anyio.EndOfStream:
            raise self._gone() from None

    def _gone(self) -> OperationFailed:
        words = self._last_words or "it said nothing"
        return OperationFailed(ErrorCode.TOOL_FAILED, f"{self.name} ended before its work was done: {words}")

    async def hear_lines(self) -> None:
        """Cut its stdout into lines until that ends."""
        async with self._send_line:
            parts: list[bytes] = []
            size = 0
            async for chunk in _chunks(self._child.stdout):
                *lines, rest = chunk.split(b"\n")
                for line in lines:
                    await self._send_line.send(b"".join([*parts, line]))
                    parts, size = [], 0
                parts.append(rest)
                size += len(rest)
                if size > MAX_ANSWER_BYTES:
                    self._last_words = f"it said a line of more than {MAX_ANSWER_BYTES} bytes"
                    return

    async def hear_complaints(self, log: JobLog) -> None:
        """Keep what it says on stderr in the log, up to a bound."""
        budget = _LOGGED_BYTES

        def take(line: str) -> None:
            nonlocal budget
            self._last_words = line.strip() or self._last_words
            budget -= len(line) + 1
            if budget > 0:
                log.line(f"  {line}")

        lines = LineSplitter(take)
        async for chunk in _chunks(self._child.stderr):
            lines.feed(chunk)
        lines.close()

    def close(self) -> None:
        """Nothing more is going to be heard."""
        self._lines.close()
        self._send_line.close()


@asynccontextmanager
async def converse(child: Child, name: str, log: JobLog) -> AsyncIterator[Conversation]:
    """Listen to the program while the context is open."""
    conversation = Conversation(child, name)
    failures: list[OperationFailed] = []
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(conversation.hear_lines)
            group.start_soon(conversation.hear_complaints, log)
            try:
                yield conversation
            except OperationFailed as error:
                # It must not leave the task group as a group of errors.
                failures.append(error)
            group.cancel_scope.cancel()
    finally:
        conversation.close()
    if failures:
        raise failures[0]


async def _chunks(pipe: int) -> AsyncIterator[bytes]:
    while True:
        await anyio.wait_readable(pipe)
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(pipe, _CHUNK)
            if not chunk:
                return
            yield chunk
