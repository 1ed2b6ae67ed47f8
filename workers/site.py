"""What the operator of a worker lets its jobs reach on this host: the roots, and how large a disk may be."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed, SettingsError
from subjects.fleet import WorkerCapabilities
from workers.beneath import make_beneath, open_beneath

MAX_VIRTUAL_BYTES: Final = 64 << 40
"""64 TiB: the largest disk of the common hypervisors. A header of 500 bytes may claim far more."""

_LOOK: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class OpenDirectory(msgspec.Struct, frozen=True):
    """A directory that is held open. `path` is what jobs and messages call it.

    Whatever is in it is reached through the descriptor: another directory that takes its name is not it.
    """

    path: Path
    descriptor: int

    @property
    def inside(self) -> Path:
        """The directory by a name that leads to it for as long as it is held open.

        Processes that this one starts may use the name too, although they do not inherit the descriptor.
        """
        return Path(f"/proc/{os.getpid()}/fd/{self.descriptor}")


class Destination(msgspec.Struct, frozen=True):
    """The directory that a job's results go to, and the roots that it must be below; none for anywhere."""

    path: Path
    roots: tuple[Path, ...] = ()

    @contextmanager
    def opened(self, *, make: bool = False) -> Iterator[OpenDirectory]:
        """Hold the directory open; with `make` it and its parents are made if they are missing.

        Raises OSError, and OperationFailed with OUTPUT_UNWRITABLE for a path that is below no root or
        leads out of it by a link.
        """
        try:
            descriptor = _opened(self.path, self.roots, _make if make else _list)
        except OSError as error:
            raise _outside(ErrorCode.OUTPUT_UNWRITABLE, self.path, self.roots, error) from error
        try:
            yield OpenDirectory(self.path, descriptor)
        finally:
            os.close(descriptor)


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """The roots of images and of outputs, each empty for anywhere. `max_virtual_bytes` bounds disks."""

    image_roots: tuple[Path, ...] = ()
    output_roots: tuple[Path, ...] = ()
    max_virtual_bytes: int = MAX_VIRTUAL_BYTES

    @classmethod
    def of(cls, image_roots: Iterable[Path], output_roots: Iterable[Path], max_disk_tb: float) -> "Site":
        """A site as a command line describes it; terabytes are powers of ten, 0 for the usual limit.

        Raises SettingsError for a root that is no absolute path of a directory.
        """
        images, outputs = tuple(image_roots), tuple(output_roots)
        for each in (*images, *outputs):
            if not each.is_absolute() or not each.is_dir():
                raise SettingsError(f"the root {each} is not the absolute path of a directory")
        size = min(int(max_disk_tb * 10**12) or MAX_VIRTUAL_BYTES, MAX_VIRTUAL_BYTES)
        return cls(image_roots=images, output_roots=outputs, max_virtual_bytes=size)

    def described(self, profile: WorkerCapabilities) -> WorkerCapabilities:
        """A worker's profile with its roots, as its heartbeats tell them."""
        return msgspec.structs.replace(
            profile,
            image_roots=tuple(map(str, self.image_roots)),
            output_roots=tuple(map(str, self.output_roots)),
        )

    def destination(self, path: str) -> Destination:
        """Where a job's results go, by the path that the job gives."""
        return Destination(Path(path), self.output_roots)

    def open_images(self, path: Path, roots: tuple[Path, ...] | None = None) -> OpenDirectory:
        """Open a directory of images; whoever calls this closes its descriptor.

        Raises OSError, and OperationFailed with IMAGE_UNSAFE for a path that is below no root or leads out
        of it by a link.
        """
        below = self.image_roots if roots is None else roots
        try:
            return OpenDirectory(path, _opened(path, below, _look))
        except OSError as error:
            raise _outside(ErrorCode.IMAGE_UNSAFE, path, below, error) from error


ANYWHERE: Final = Site()
"""A worker without roots: it serves every path that its user may use."""


def root_of(path: Path, roots: tuple[Path, ...]) -> Path | None:
    """The nearest of the roots that a path is below, by its words alone; None if it is below none."""
    found = [each for each in roots if path.is_relative_to(each)]
    return max(found, key=lambda each: len(each.parts), default=None)


_Opener = Callable[[int | None, Path], int]


def _opened(path: Path, roots: tuple[Path, ...], opener: _Opener) -> int:
    if not roots:
        return opener(None, path)
    root = root_of(path, roots)
    if root is None or os.pardir in path.parts:
        raise OSError(errno.EXDEV, "the path is below no root", str(path))
    # Opened for each use: a filesystem may be mounted there while the worker runs.
    handle = os.open(root, _LOOK)
    try:
        return opener(handle, path.relative_to(root))
    finally:
        os.close(handle)


def _look(handle: int | None, path: Path) -> int:
    return os.open(path, _LOOK) if handle is None else open_beneath(handle, path, _LOOK)


def _list(handle: int | None, path: Path) -> int:
    return os.open(path, _LIST) if handle is None else open_beneath(handle, path, _LIST)


def _make(handle: int | None, path: Path) -> int:
    if handle is not None:
        return make_beneath(handle, path)
    path.mkdir(parents=True, exist_ok=True)
    return os.open(path, _LIST)


def _outside(code: ErrorCode, path: Path, roots: tuple[Path, ...], error: OSError) -> Exception:
    """What a refusal to open a directory means: the path leads out, or the system's own reason."""
    if not roots or error.errno not in {errno.EXDEV, errno.ELOOP}:
        return error
    where = ", ".join(map(str, roots))
    how = "goes through a symbolic link" if error.errno == errno.ELOOP else "is outside"
    return OperationFailed(code, f"{path} {how}; this worker serves only what is below {where}")
