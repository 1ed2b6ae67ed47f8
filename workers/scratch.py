"""Files of a scratch directory, to which an attempt's tools write as well as its worker.

A tool that was taken over reaches nothing else, and the worker reaches everything: it must not follow a link
that was laid there, nor wait for whoever is at the other end of a pipe.
"""

import errno
import itertools
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from h2kbus.errors import ErrorCode, OperationFailed

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE: Final = 0o640

MANIFEST: Final = "publication.json"
"""What an attempt is about to publish. Workers believe it, so that tools get it read-only."""

REMOVAL_SECONDS: Final = 300.0
"""Files of terabytes take minutes to go; who keeps making more is not waited for."""


def made(path: Path) -> IO[bytes]:
    """Open what a tool has made. Raises OSError, and TOOL_FAILED for anything but a regular file."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise _trap(path)
    file = os.fdopen(os.open(path, _READ), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _trap(path)
    return file


def fresh(path: Path, *, buffering: int = -1) -> IO[bytes]:
    """Make a file in the place of any that has the name. Raises OSError."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, _MAKE, _MODE), "wb", buffering=buffering)


def copy(source: Path, target: Path) -> None:
    """Copy a file of the host's into the directory. Raises OSError."""
    with source.open("rb") as original, fresh(target) as file:
        shutil.copyfileobj(original, file)


@contextmanager
def folder(path: Path) -> Iterator[int]:
    """Hold a directory open by a descriptor. Raises OSError, and TOOL_FAILED for what is none."""
    try:
        descriptor = os.open(path, _LIST)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise _trap(path) from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def names_in(directory: int) -> list[str]:
    """What an open directory holds. Raises OSError."""
    with os.scandir(directory) as found:
        return [each.name for each in found]


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, however deep that is nested.

    Raises OSError, TimeoutError for one that others fill for longer than `REMOVAL_SECONDS`.
    """
    mark, numbers = secrets.token_hex(8), itertools.count()
    until = time.monotonic() + REMOVAL_SECONDS
    with folder(path) as top:
        while found := names_in(top):
            for each in found:
                if time.monotonic() > until:
                    words = f"it was not empty within {REMOVAL_SECONDS:g} s"
                    raise TimeoutError(errno.ETIMEDOUT, words, str(path))
                _remove(top, each, (f"{mark}-{number}" for number in numbers))
    path.rmdir()


def _remove(top: int, name: str, fresh_names: Iterator[str]) -> None:
    """Remove a file, or a directory after lifting those in it to the top.

    So there are neither as many calls nor as many open files as it is deep.
    """
    if not _is_directory(top, name):
        os.unlink(name, dir_fd=top)
        return
    _permit(top, name)
    below = os.open(name, _LIST, dir_fd=top)
    try:
        for each in names_in(below):
            if _is_directory(below, each):
                _permit(below, each)
                os.rename(each, next(fresh_names), src_dir_fd=below, dst_dir_fd=top)
            else:
                os.unlink(each, dir_fd=below)
    finally:
        os.close(below)
    os.rmdir(name, dir_fd=top)


def _is_directory(parent: int, name: str) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _permit(parent: int, name: str) -> None:
    """Let its owner into a directory, whatever a tool has made of its mode."""
    descriptor = os.open(name, _LOOK, dir_fd=parent)
    try:
        Path(f"/proc/self/fd/{descriptor}").chmod(0o700)
    finally:
        os.close(descriptor)


def _trap(path: Path) -> OperationFailed:
    message = f"what a tool has left at {path.name} is not what belongs there"
    return OperationFailed(ErrorCode.TOOL_FAILED, message)
