"""A tool's process: started without a shell, with a small environment, and ended with its whole group."""

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

_NOTHING: Final[Mapping[str, str]] = {}
_SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Child:
    """A started process, the leader of its own session, with both its outputs as non-blocking pipes.

    With `talks`, its stdin is one too; otherwise that is empty.

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
    ) -> None:
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd=scratch,
                env={**_environment(scratch), **environment},
                pass_fds=tuple(pass_fds),
            )
        except OSError as error:
            message = f"a tool cannot be started in {scratch}: {error.strerror}"
            raise OperationFailed(ErrorCode.TOOL_FAILED, message) from error
        self.pid = self._process.pid
        self.began_ns = time.time_ns()
        self._pidfd = os.pidfd_open(self.pid)
        self.stdout = _non_blocking(self._process.stdout)
        self.stderr = _non_blocking(self._process.stderr)
        self.stdin = _non_blocking(self._process.stdin) if talks else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pidfd)
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
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def reap(self) -> bool:
        return self._process.poll() is not None

    @property
    def status(self) -> int:
        """The exit status; the negative number of the signal that ended it."""
        return self._process.returncode if self._process.returncode is not None else -signal.SIGKILL

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
        return self.reap()


def _non_blocking(pipe: IO[bytes] | None) -> int:
    if pipe is None:
        raise ValueError("a child without pipes cannot be watched")
    os.set_blocking(pipe.fileno(), False)
    return pipe.fileno()


def tool_path(name: str) -> str | None:
    """Where a program is, looked for in the system's directories too; None if it is missing."""
    return shutil.which(name, path=_path())


def _path() -> str:
    return os.pathsep.join(filter(None, (os.environ.get("PATH"), _SEARCH_PATH)))


def _environment(scratch: Path) -> dict[str, str]:
    place = str(scratch)
    return {"PATH": _path(), "LC_ALL": "C.UTF-8", "HOME": place, "TMPDIR": place}
