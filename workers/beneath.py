"""Paths opened below a directory that is held open: no link, however quickly exchanged, leads out of it.

No component may be a symbolic link at all. Links inside would be harmless, but whoever looks at a path
could not tell any more which file it means, and without openat2(2) they cannot be followed safely.
Mounts below the directory are followed: they are the operator's.
"""

import contextlib
import ctypes
import errno
import os
import stat
from contextlib import ExitStack
from pathlib import PurePath
from typing import Final

_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_OPENAT2: Final = 437
"""The number of the system call, the same on every architecture that Linux has gained or renumbered since
2019; see linux/include/uapi/asm-generic/unistd.h."""

_WITHOUT: Final = frozenset({errno.ENOSYS, errno.EPERM})
"""What kernels before 5.6 say, and seccomp filters of containers that do not know the call."""

_STEP: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory: int, path: PurePath, flags: int) -> int:
    """Open what is at `path` below an open directory, and nothing that is elsewhere.

    Raises OSError: ELOOP for a symbolic link on the way or at the end, EXDEV for a path that leads out.
    """
    try:
        return open_by_openat2(directory, path, flags)
    except OSError as error:
        if error.errno not in _WITHOUT:
            raise
    return open_by_steps(directory, path, flags)


def open_by_openat2(directory: int, path: PurePath, flags: int) -> int:
    """Let the kernel hold the path to its directory, in one call."""
    _require_inside(path)
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=0, resolve=resolve)
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    arguments = (directory, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
    descriptor = int(call(ctypes.c_long(_OPENAT2), *arguments))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return descriptor


def open_by_steps(directory: int, path: PurePath, flags: int) -> int:
    """Go down one directory at a time, each held open while the next one is looked up in it."""
    _require_inside(path)
    *between, last = path.parts or (os.curdir,)
    with ExitStack() as stack:
        for name in between:
            directory = _step(directory, name, _STEP)
            stack.callback(os.close, directory)
        return _step(directory, last, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def make_beneath(directory: int, path: PurePath) -> int:
    """Open a directory below another one, after making it and those on the way that are missing."""
    _require_inside(path)
    with ExitStack() as stack:
        for name in path.parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=directory)
            directory = _step(directory, name, _STEP)
            stack.callback(os.close, directory)
        return os.open(os.curdir, _LIST, dir_fd=directory)


def _step(directory: int, name: str, flags: int) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except NotADirectoryError as error:
        if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from error
        raise


def _require_inside(path: PurePath) -> None:
    if path.is_absolute() or os.pardir in path.parts:
        raise OSError(errno.EXDEV, "the path leads out of its directory", str(path))
