"""A tool's process: started without a shell, with a small environment, and ended with its whole group.

A tool in a sandbox is the child of the process that made it, and the first in a process namespace of its
own: the kernel ends all others in it with that one, whatever groups they made.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Self

import anyio

from h2kbus.errors import ErrorCode, OperationFailed

REAP_SECONDS: Final = 10.0
"""How long SIGKILL may take; only a process stuck in the kernel takes longer."""

_COUNTERS_BYTES: Final = 4096
_SIGNALLED: Final = 128
_SIGNALS: Final = frozenset(each.value for each in signal.Signals)
_NOTHING: Final[Mapping[str, str]] = {}
_SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Child:
    """A started process, the leader of its own session, with both its outputs as non-blocking pipes.

    With `talks`, its stdin is one too; otherwise that is empty. `sandboxed` says that the command makes a
    sandbox for the tool, which is signalled in the place of its maker.

    It is not reaped before its group has been killed, so that its number cannot belong to another
    process by then.
    """

    def __init__(
        self,
        command: Sequence[str],
        scratch: Path,
        pass_fds: Collection[int],
        *,
        environment: Mapping[str, str] = _NOTHING,
        talks: bool = False,
        sandboxed: bool = False,
    ) -> None:
        self.sandboxed = sandboxed
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd=scratch,
                env={"PATH": _path(), "LC_ALL": "C.UTF-8", **environment},
                pass_fds=tuple(pass_fds),
            )
        except OSError as error:
            message = f"a tool cannot be started in {scratch}: {error.strerror}"
            raise OperationFailed(ErrorCode.TOOL_FAILED, message) from error
        self.pid = self._process.pid
        self.began_ns = time.time_ns()
        self._pidfd = os.pidfd_open(self.pid)
        self._io = _counters_of(self.pid)
        self.stdout = _non_blocking(self._process.stdout)
        self.stderr = _non_blocking(self._process.stderr)
        self.stdin = _non_blocking(self._process.stdin) if talks else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pidfd)
        if self._io is not None:
            os.close(self._io)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def exited(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    async def wait(self) -> None:
        """Wait until it has exited, without reaping it."""
        if not self.exited():
            await anyio.wait_readable(self._pidfd)

    def signal_group(self, number: signal.Signals) -> None:
        inside = self.inside
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if inside is None:
                os.killpg(self.pid, number)
            else:
                os.kill(inside, number)

    @property
    def inside(self) -> int | None:
        """The first process of the sandbox; None while there is none, or none any more."""
        if not self.sandboxed or self.exited():
            return None
        numbers = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(numbers[0]) if numbers else None

    def io_bytes(self) -> tuple[int, int]:
        """What it read and wrote through the kernel so far (rchar and wchar of proc(5)).

        Its children count when they have been waited for, so that a sandboxed tool counts at its end.
        """
        if self._io is None:
            return 0, 0
        text = os.pread(self._io, _COUNTERS_BYTES, 0).decode()
        counters = dict(each.split(": ") for each in text.splitlines())
        return int(counters["rchar"]), int(counters["wchar"])

    def reap(self) -> bool:
        return self._process.poll() is not None

    @property
    def status(self) -> int:
        """The exit status; the negative number of the signal that ended it."""
        code = self._process.returncode
        if code is None:
            return -signal.SIGKILL
        # A sandbox's maker tells a signal as shells do; no tool of ours ends so by itself.
        return _SIGNALLED - code if self.sandboxed and code - _SIGNALLED in _SIGNALS else code

    async def end(self, grace_seconds: float) -> bool:
        """Leave nothing of its group, whether it ended by itself or not; False if it cannot be killed."""
        with anyio.CancelScope(shield=True):
            if not self.exited():
                self.signal_group(signal.SIGTERM)
                with anyio.move_on_after(grace_seconds):
                    await self.wait()
            self.signal_group(signal.SIGKILL)
            with anyio.move_on_after(REAP_SECONDS):
                await self.wait()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        return self.reap()


def _counters_of(pid: int) -> int | None:
    """A descriptor of its counters, opened early: once a process has ended, only root may open them.

    None where it has ended by now, as what only says its version may have.
    """
    try:
        return os.open(f"/proc/{pid}/io", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _non_blocking(pipe: IO[bytes] | None) -> int:
    if pipe is None:
        raise ValueError("a child without pipes cannot be watched")
    os.set_blocking(pipe.fileno(), False)
    return pipe.fileno()


def tool_path(name: str) -> str | None:
    """Where a program is, looked for in the system's directories too; None if it is missing."""
    return shutil.which(name, path=_path())


def required_tool(name: str) -> str:
    """Where a program is. Raises TOOL_MISSING."""
    found = tool_path(name)
    if found is None:
        raise OperationFailed(ErrorCode.TOOL_MISSING, f"{name} is not installed on the worker", tool=name)
    return found


def _path() -> str:
    return os.pathsep.join(filter(None, (os.environ.get("PATH"), _SEARCH_PATH)))
