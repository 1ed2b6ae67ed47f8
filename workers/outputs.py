"""Where an attempt works and how its results become visible: whole, once, and never over another file."""

import errno
import functools
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed

_FILE_MODE = 0o640
_SCRATCH_PREFIX = ".h2kbus-"
_REMOVAL_SECONDS = 60.0
_ERRNO_CODES = {
    errno.ENOSPC: ErrorCode.NO_SPACE,
    errno.EDQUOT: ErrorCode.NO_SPACE,
    errno.EEXIST: ErrorCode.OUTPUT_EXISTS,
    errno.ENOTEMPTY: ErrorCode.OUTPUT_EXISTS,
}
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class StagedFile(msgspec.Struct, frozen=True):
    """A finished file in the scratch directory, and the name that it is to get."""

    source: Path
    target: Path


def log_path(output_path: Path, job_id: str) -> Path:
    """The log of a job: all its attempts append to it."""
    return output_path / f"{job_id}.log"


def report_path(output_path: Path, job_id: str) -> Path:
    """The JSON report of a job that succeeded."""
    return output_path / f"{job_id}.report.json"


def intermediate_path(output_path: Path, job_id: str, name: str) -> Path:
    """A file kept because the job asks for its intermediates."""
    return output_path / f"{job_id}.{name}"


@asynccontextmanager
async def scratch_directory(output_path: Path, job_id: str, token: int) -> AsyncIterator[Path]:
    """A private directory inside `output_path`, so on its filesystem, for one attempt.

    `output_path` is made if it is missing; the directory goes away at the end. Raises OUTPUT_UNWRITABLE
    or NO_SPACE.
    """
    scratch = output_path / f"{_SCRATCH_PREFIX}{job_id}-{token}"
    await anyio.to_thread.run_sync(_make_scratch, scratch)
    try:
        yield scratch
    finally:
        with anyio.move_on_after(_REMOVAL_SECONDS, shield=True):
            await anyio.to_thread.run_sync(functools.partial(shutil.rmtree, scratch, ignore_errors=True))


async def sweep_scratch(output_path: Path, job_id: str, *, before: int) -> None:
    """Remove what earlier attempts, those with tokens below `before`, left when they were killed."""
    await anyio.to_thread.run_sync(_sweep, output_path, job_id, before)


def require_free(*targets: Path) -> None:
    """Raise OUTPUT_EXISTS if one of the names is taken, before any work is done."""
    for target in targets:
        with output_errors(target):
            if os.path.lexists(target):
                raise OperationFailed(ErrorCode.OUTPUT_EXISTS, f"{target} exists already and is left alone")


def free_bytes(directory: Path) -> int:
    """How many bytes an unprivileged writer may still put there."""
    with output_errors(directory):
        status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


async def sync_file(path: Path) -> None:
    """Return when the file's content is on stable storage, not only in the page cache."""
    await anyio.to_thread.run_sync(_sync, path)


async def publish(files: Sequence[StagedFile], guard: Callable[[], Awaitable[None]]) -> None:
    """Give finished files their final names, all of them or none.

    Each is on stable storage before `guard` is asked, and visible only after it agreed. From then on it
    cannot be cancelled. Raises OUTPUT_EXISTS, OUTPUT_UNWRITABLE or NO_SPACE, and what `guard` raises.
    """
    for each in files:
        await anyio.to_thread.run_sync(_finish, each.source)
    await guard()
    await anyio.to_thread.run_sync(_place_all, files)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about an output into a job's error, in one table."""
    try:
        yield
    except OSError as error:
        code = _ERRNO_CODES.get(error.errno or 0, ErrorCode.OUTPUT_UNWRITABLE)
        raise OperationFailed(code, f"{path}: {error.strerror}") from error


def _make_scratch(scratch: Path) -> None:
    with output_errors(scratch.parent):
        scratch.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(scratch):
            shutil.rmtree(scratch)
        scratch.mkdir(mode=0o700)


def _sweep(output_path: Path, job_id: str, before: int) -> None:
    for each in list(output_path.glob(f"{_SCRATCH_PREFIX}{job_id}-*")):
        token = each.name.removeprefix(f"{_SCRATCH_PREFIX}{job_id}-")
        if token.isdecimal() and int(token) < before:
            shutil.rmtree(each, ignore_errors=True)


def _finish(path: Path) -> None:
    with output_errors(path):
        path.chmod(_FILE_MODE)
    _sync(path)


def _sync(path: Path) -> None:
    with output_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _place_all(files: Sequence[StagedFile]) -> None:
    placed: list[StagedFile] = []
    try:
        for each in files:
            with output_errors(each.target):
                _place(each)
            placed.append(each)
        for directory in {each.target.parent for each in files}:
            _sync(directory)
    except OperationFailed:
        for each in placed:
            each.target.unlink(missing_ok=True)
        raise


def _place(file: StagedFile) -> None:
    """Give the file its name in one step that fails if the name is taken.

    Where there are no hard links, an empty file made for the purpose holds the name until the rename.
    """
    try:
        os.link(file.source, file.target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(file.target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _FILE_MODE))
        file.source.rename(file.target)
