"""Where an attempt works and how its results become visible: whole, once, and never over another file."""

import contextlib
import errno
import functools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed

_FILE_MODE = 0o640
SCRATCH_PREFIX = ".h2kbus-"
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


def evidence_path(output_path: Path, job_id: str, attempt: int, name: str) -> Path:
    """A file that a failed attempt leaves, beside the job's log."""
    return output_path / f"{job_id}.attempt-{attempt}.{name}"


@asynccontextmanager
async def scratch_directory(
    output_path: Path, job_id: str, token: int, is_needed: Callable[[], bool]
) -> AsyncIterator[Path]:
    """A private directory inside `output_path`, so on its filesystem, for one attempt.

    `output_path` is made if it is missing. The directory goes away at the end, unless `is_needed` says
    that something published from it has yet to be settled. Raises OUTPUT_UNWRITABLE or NO_SPACE.
    """
    scratch = output_path / f"{SCRATCH_PREFIX}{job_id}-{token}"
    await anyio.to_thread.run_sync(_make_scratch, scratch)
    try:
        yield scratch
    finally:
        if not is_needed():
            with anyio.move_on_after(_REMOVAL_SECONDS, shield=True):
                await anyio.to_thread.run_sync(functools.partial(shutil.rmtree, scratch, ignore_errors=True))


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


async def keep_evidence(files: Sequence[StagedFile]) -> frozenset[Path]:
    """Let a failed attempt's files stay, and return the names that they got.

    One whose name is taken, or that the disk does not take, is left out: the attempt has a better reason
    to fail than its evidence.
    """
    return await anyio.to_thread.run_sync(_keep_evidence, files)


async def sync_file(path: Path) -> None:
    """Return when the file's content is on stable storage, not only in the page cache."""
    await anyio.to_thread.run_sync(sync_path, path)


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


def finish_file(path: Path) -> None:
    """Make a finished file durable, with the mode of a result."""
    with output_errors(path):
        path.chmod(_FILE_MODE)
    sync_path(path)


def sync_path(path: Path) -> None:
    """Return when a file or a directory is on stable storage."""
    with output_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _keep_evidence(files: Sequence[StagedFile]) -> frozenset[Path]:
    kept = set()
    for each in files:
        with contextlib.suppress(OSError, OperationFailed):
            finish_file(each.source)
            place_file(each)
            kept.add(each.target)
    return frozenset(kept)


def place_file(file: StagedFile) -> None:
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
