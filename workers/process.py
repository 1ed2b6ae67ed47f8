"""The one place where workers run other programs.

Every tool runs in a session of its own, without a shell, with a small environment and limits on what it
takes, with its output bounded and kept in the job's log. It dies with the attempt (cancelled, timed out),
with its whole process group, and it dies with the worker, even with one that is killed by SIGKILL.
Where the host allows it, it runs in a sandbox, in which it sees and reaches nothing else.
"""

import contextlib
import os
import shlex
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.child import Child, required_tool
from workers.conversation import Conversation, converse
from workers.joblog import JobLog, printable
from workers.lines import MAX_LINE_BYTES, LineSplitter, OnLine
from workers.sandbox import BWRAP, ORDINARY, SCRATCH, Allowance, command_line
from workers.seal import seal

GRACE_SECONDS = 1.0
"""How long a process group may take to end after SIGTERM before it gets SIGKILL."""

CAPTURE_BYTES = 1024 * 1024
MOST_RUNS = 500
"""How many runs of tools are remembered of one attempt."""
_CHUNK = 64 * 1024
_TAIL_LINES = 20
_LOGGED_BYTES = 256 * 1024
_NO_SPACE = ("No space left on device", "Disk quota exceeded")


class ToolOutput(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool ended. `stdout` is at most the capture limit, and `truncated` says that more came.

    `stderr` is the end of what it said there. The byte counts are what it and the children that it waited
    for read and wrote through the kernel (rchar and wchar of proc(5)).
    """

    status: int
    stdout: bytes = b""
    stderr: str = ""
    truncated: bool = False
    read_bytes: int = 0
    written_bytes: int = 0

    @property
    def last_words(self) -> str:
        """The last line that the tool said, on stderr if it said anything there."""
        for text in (self.stderr, self.stdout[-MAX_LINE_BYTES:].decode("utf-8", "replace")):
            lines = [each.strip() for each in text.splitlines() if each.strip()]
            if lines:
                return printable(lines[-1])[:500]
        return "it said nothing"


class ToolRun(msgspec.Struct, frozen=True):
    """One run of a tool that is over. Times are nanoseconds since 1970."""

    name: str
    began_ns: int
    ended_ns: int
    status: int


class ToolRunner:
    """Runs the tools of one attempt, one or several at a time.

    They work in `scratch` and everything they say goes to `log`. `commands` are the command lines so
    far, `runs` the first of the runs that are over; `read_bytes` and `written_bytes` add up what all of
    them read and wrote. `confined` must be true only where sandboxes were proven to work.
    """

    def __init__(
        self, log: JobLog, scratch: Path, *, grace_seconds: float = GRACE_SECONDS, confined: bool = False
    ) -> None:
        self._confined = confined
        self.log = log
        self.scratch = scratch
        self.read_bytes = 0
        self.written_bytes = 0
        self.commands: list[str] = []
        self.runs: list[ToolRun] = []
        self._grace_seconds = grace_seconds
        self._sealing = anyio.Lock()

    async def run(
        self,
        argv: Sequence[str],
        *,
        accept: Collection[int] = (0,),
        on_output: OnLine | None = None,
        capture_limit: int = CAPTURE_BYTES,
        timeout: float | None = None,
        allowance: Allowance = ORDINARY,
        pass_fds: Collection[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> ToolOutput:
        """Run a program to its end and return what it said.

        In a sandbox it can read the files behind `pass_fds` and what `allowance` says, and write to its
        scratch directory only; a file that was opened for reading cannot be written to by it.

        `on_output` gets each line of its stdout (ended by newline or carriage return) as it comes; such
        lines are kept neither in memory nor in the log. `timeout` is in seconds. Raises OperationFailed:
        TOOL_MISSING, NO_SPACE, or TOOL_FAILED for an exit status not in `accept`, a signal, or a
        time-out. When cancelled, the process group is gone before the cancellation goes on.
        """
        name = Path(argv[0]).name
        with (
            await self._start(argv, allowance, pass_fds, environment or {}) as child,
            anyio.move_on_after(timeout) as deadline,
        ):
            watch = _Watch(child, self.log, on_output, capture_limit)
            try:
                await watch.to_the_end()
            finally:
                await self._end(child, name)
        output = watch.output()
        self._account(name, output)
        if deadline.cancelled_caught:
            raise OperationFailed(ErrorCode.TOOL_FAILED, f"{name} did not finish within {timeout:g} s")
        if output.status not in accept or (child.sandboxed and _is_unmade(output)):
            raise _failure(name, output)
        return output

    @asynccontextmanager
    async def converse(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        allowance: Allowance = ORDINARY,
        pass_fds: Collection[int] = (),
    ) -> AsyncIterator[Conversation]:
        """Run a program that is talked to by lines, for as long as the context is open.

        What it says on stderr goes to the log. Raises TOOL_MISSING, and TOOL_FAILED when it ends while
        it is being talked to. At the end, and when cancelled, its process group is gone.
        """
        name = Path(argv[0]).name
        with await self._start(argv, allowance, pass_fds, environment or {}, talks=True) as child:
            try:
                async with converse(child, name, self.log) as conversation:
                    yield conversation
            finally:
                await self._end(child, name)

    @property
    def seen_scratch(self) -> str:
        """The scratch directory by the name that a job's tools have for it."""
        return SCRATCH if self._confined else str(self.scratch)

    async def _start(
        self,
        argv: Sequence[str],
        allowance: Allowance,
        pass_fds: Collection[int],
        environment: Mapping[str, str],
        *,
        talks: bool = False,
    ) -> Child:
        sandboxed = self._confined and not allowance.host
        command = command_line(
            [required_tool(argv[0]), *argv[1:]], allowance, sandbox=self.scratch if sandboxed else None
        )
        if sandboxed:
            # Tools that start at once would seal their image as often.
            async with self._sealing:
                for each in pass_fds:
                    await seal(each)
        self.commands.append(self.log.redactor.text(shlex.join(argv)))
        self.log.line(f"run: {self.commands[-1]}")
        return Child(
            command,
            self.scratch,
            pass_fds,
            environment={**_home(SCRATCH if sandboxed else str(self.scratch)), **environment},
            talks=talks,
            sandboxed=sandboxed,
        )

    async def _end(self, child: Child, name: str) -> None:
        if not await child.end(self._grace_seconds):
            self.log.line(f"{name} (process {child.pid}) cannot be killed: it is stuck in the kernel")
        if len(self.runs) < MOST_RUNS:
            self.runs.append(ToolRun(name, child.began_ns, time.time_ns(), child.status))

    def _account(self, name: str, output: ToolOutput) -> None:
        self.read_bytes += output.read_bytes
        self.written_bytes += output.written_bytes
        self.log.line(f"{name} ended with status {output.status}")


class _Watch:
    """Reads a child's two outputs to their end, within bounds."""

    def __init__(self, child: Child, log: JobLog, on_output: OnLine | None, capture_limit: int) -> None:
        self._child = child
        self._log = log
        self._on_output = on_output
        self._limit = capture_limit
        self._captured = bytearray()
        self._truncated = False
        self._tail: list[str] = []
        self._io = (0, 0)
        self._log_budget = _LOGGED_BYTES

    async def to_the_end(self) -> None:
        """Return when the child has exited and its outputs are drained.

        A grandchild that left the group may hold a pipe open: it is waited for only a moment.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._pump, self._child.stdout, self._take_stdout, self._stdout_line())
            group.start_soon(self._pump, self._child.stderr, self._ignore, self._stderr_line)
            await self._child.wait()
            self._io = self._child.io_bytes()
            self._child.signal_group(signal.SIGKILL)
            group.cancel_scope.deadline = anyio.current_time() + GRACE_SECONDS

    def output(self) -> ToolOutput:
        return ToolOutput(
            status=self._child.status,
            stdout=bytes(self._captured),
            stderr="\n".join(self._tail),
            truncated=self._truncated,
            read_bytes=self._io[0],
            written_bytes=self._io[1],
        )

    async def _pump(self, pipe: int, take: Callable[[bytes], None], on_line: OnLine) -> None:
        lines = LineSplitter(on_line)
        while True:
            await anyio.wait_readable(pipe)
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(pipe, _CHUNK)
                if not chunk:
                    lines.close()
                    return
                take(chunk)
                lines.feed(chunk)

    def _take_stdout(self, chunk: bytes) -> None:
        if self._on_output is None:
            room = self._limit - len(self._captured)
            self._captured += chunk[:room]
            self._truncated = self._truncated or len(chunk) > room

    def _ignore(self, chunk: bytes) -> None:
        """Nothing of stderr is kept but its lines."""

    def _stdout_line(self) -> OnLine:
        return self._on_output or self._to_log

    def _stderr_line(self, line: str) -> None:
        self._to_log(line)
        self._tail = [*self._tail, line][-_TAIL_LINES:]

    def _to_log(self, line: str) -> None:
        self._log_budget -= len(line) + 1
        if self._log_budget > 0:
            self._log.line(f"  {line}")


def _home(scratch: str) -> dict[str, str]:
    return {"HOME": scratch, "TMPDIR": scratch}


def _is_unmade(output: ToolOutput) -> bool:
    """Whether the sandbox was not made: its maker ends with a status that tools use too."""
    return output.status == 1 and output.last_words.startswith(f"{BWRAP}: ")


def _failure(name: str, output: ToolOutput) -> OperationFailed:
    if any(words in output.stderr for words in _NO_SPACE):
        return OperationFailed(ErrorCode.NO_SPACE, f"{name}: {output.last_words}", tool=name)
    if _is_unmade(output):
        message = f"{name} could not be given its sandbox: {output.last_words}"
        return OperationFailed(ErrorCode.TOOL_FAILED, message, tool=name)
    if output.status < 0:
        return OperationFailed(
            ErrorCode.TOOL_FAILED, _signal_words(name, output), tool=name, signal=-output.status
        )
    message = f"{name} failed with status {output.status}: {output.last_words}"
    return OperationFailed(ErrorCode.TOOL_FAILED, message, tool=name, status=output.status)


def _signal_words(name: str, output: ToolOutput) -> str:
    known = {each.value: each.name for each in signal.Signals}
    return f"{name} was killed by {known.get(-output.status, f'signal {-output.status}')}"
