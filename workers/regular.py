"""Regular files, opened so that they are nothing else, and known again when they are looked at later."""

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.site import OpenDirectory, Site

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

OPEN_FILES: Final = 16_384
"""A VMDK may have 512 extents, all of them held open while it is read, and a worker runs ten jobs."""

_ERRNO_CODES = {
    errno.ENOENT: ErrorCode.IMAGE_NOT_FOUND,
    errno.ENOTDIR: ErrorCode.IMAGE_NOT_FOUND,
    errno.ENAMETOOLONG: ErrorCode.IMAGE_NOT_FOUND,
    errno.ELOOP: ErrorCode.IMAGE_UNSAFE,
}
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


class Identity(msgspec.Struct, frozen=True):
    """What tells a file from another one, and from itself once it was written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class OpenFile(msgspec.Struct, frozen=True):
    """A regular file of a directory, open for reading, as it was when it was opened. Its size is in bytes."""

    directory: OpenDirectory
    name: str
    descriptor: int
    identity: Identity

    @property
    def path(self) -> Path:
        return self.directory.path / self.name

    @property
    def size(self) -> int:
        return self.identity.size

    def require_unchanged(self) -> None:
        """Raise IMAGE_UNSAFE if the file, or what its name means in its directory, changed meanwhile."""
        try:
            now = Identity.of(_status(self.directory, self.name))
        except OSError:
            now = None
        if now != self.identity:
            message = f"{self.path} was changed or exchanged while it was being read"
            raise OperationFailed(ErrorCode.IMAGE_UNSAFE, message)


def allow_many_files() -> None:
    """Let this process hold `OPEN_FILES` files open, or as many as its hard limit lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def open_image_file(site: Site, path: Path, stack: ExitStack) -> OpenFile:
    """Open the image that a job names, below one of the site's roots, for as long as the stack lasts.

    Raises what `open_regular` raises.
    """
    with _errors(path):
        directory = site.open_images(path.parent)
    stack.callback(os.close, directory.descriptor)
    return open_regular(directory, path.name, stack)


def open_regular(directory: OpenDirectory, name: str, stack: ExitStack) -> OpenFile:
    """Open a regular file for as long as the stack lasts, following no link and waiting for nobody.

    Raises OperationFailed with IMAGE_NOT_FOUND, IMAGE_UNREADABLE, or IMAGE_UNSAFE for any other kind of file.
    """
    path = directory.path / name
    with _errors(path):
        _require_kind(path, _status(directory, name))
        descriptor = os.open(name, _READ, dir_fd=directory.descriptor)
        stack.callback(os.close, descriptor)
        status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OperationFailed(ErrorCode.IMAGE_UNSAFE, f"{path} was exchanged while it was being opened")
    return OpenFile(directory, name, descriptor, Identity.of(status))


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        code = _ERRNO_CODES.get(error.errno or 0, ErrorCode.IMAGE_UNREADABLE)
        raise OperationFailed(code, f"{path}: {error.strerror}") from error


def _status(directory: OpenDirectory, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)


def _require_kind(path: Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        words = _KINDS.get(kind, "not a file")
        raise OperationFailed(ErrorCode.IMAGE_UNSAFE, f"{path} is {words}; only a regular file is accepted")
