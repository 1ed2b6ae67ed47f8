"""Descriptors that cannot be turned into writable ones.

A tool opens a file that it was handed by its name in /proc, and may then ask for more than the descriptor
allows: a file that belongs to the worker's user opens for writing. Not so where the mount is read-only.
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

import anyio

from h2kbus.errors import ErrorCode, OperationFailed
from workers.child import Child
from workers.sandbox import mount_holder

_SECONDS: Final = 30.0


async def seal(descriptor: int) -> None:
    """Exchange a file's descriptor for one of the same file on a mount that is read-only.

    What is no regular file, or is open for writing, stays as it is. The mount is that of a sandbox which
    ends here: the descriptor keeps the mount, and nothing else can reach it. Raises IMAGE_UNSAFE if the
    file's name leads to another file by now, TOOL_FAILED or TOOL_MISSING.
    """
    if not _can_become_writable(descriptor):
        return
    path = _path_of(descriptor)
    with Child(mount_holder(path), Path("/"), (), talks=True, sandboxed=True) as child:
        try:
            await _answer(child, path)
            _exchange(descriptor, Path(f"/proc/{child.inside}/root{path}"), path)
        finally:
            await child.end(0.0)


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _can_become_writable(descriptor: int) -> bool:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    sealed = bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
    return regular and not sealed and flags & os.O_ACCMODE == os.O_RDONLY


async def _answer(child: Child, path: Path) -> None:
    """Wait for the echo: then the sandbox is complete."""
    if child.stdin is None:
        raise ValueError("the program was started without a stdin")
    # A sandbox that could not be made is gone already, and its last words say why.
    with contextlib.suppress(BrokenPipeError):
        os.write(child.stdin, b"\n")
    with anyio.move_on_after(_SECONDS):
        await anyio.wait_readable(child.stdout)
    if child.inside is None:
        message = (
            f"{path} could not be made read-only: {os.read(child.stderr, 4096).decode('utf-8', 'replace')}"
        )
        raise OperationFailed(ErrorCode.TOOL_FAILED, message.strip())


def _exchange(descriptor: int, name: Path, path: Path) -> None:
    try:
        fresh = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        message = f"{path} could not be made read-only: {error.strerror}"
        raise OperationFailed(ErrorCode.TOOL_FAILED, message) from error
    try:
        if not os.path.sameopenfile(fresh, descriptor):
            message = f"{path} was exchanged while it was being read"
            raise OperationFailed(ErrorCode.IMAGE_UNSAFE, message)
        os.dup2(fresh, descriptor, inheritable=False)
    finally:
        os.close(fresh)
