"""A program that is talked to has its lines heard as they are asked for, and no more is held of them."""

import contextlib
import os
from pathlib import Path
from typing import cast

import anyio
import msgspec
import pytest

from workers.child import Child
from workers.conversation import MAX_ANSWER_BYTES, converse
from workers.joblog import JobLog

pytestmark = pytest.mark.anyio

LINE = b"x" * (MAX_ANSWER_BYTES // 4) + b"\n"


class Program(msgspec.Struct, frozen=True):
    """The worker's ends of a program's pipes."""

    stdout: int
    stderr: int
    stdin: int | None = None


async def say(pipe: int, words: bytes) -> int:
    """Say as much as is listened to, and return how much that was."""
    rest, idle = memoryview(words), 0
    # Whoever listens takes something in each round of the event loop.
    while rest and idle < 10:
        idle += 1
        with contextlib.suppress(BlockingIOError):
            rest, idle = rest[os.write(pipe, rest) :], 0
        await anyio.sleep(0)
    return len(words) - len(rest)


async def test_lines_that_nobody_asks_for_do_not_fill_memory() -> None:
    (stdout, program), (stderr, complaints) = os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)
    child = cast("Child", Program(stdout, stderr))
    try:
        with JobLog(Path(os.devnull)) as log:
            async with converse(child, "program", log) as conversation:
                assert await say(program, 5 * LINE) < MAX_ANSWER_BYTES
                assert await conversation.receive() == LINE[:-1]
    finally:
        for each in (stdout, program, stderr, complaints):
            os.close(each)
