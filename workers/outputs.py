"""Where an attempt works and how its results become visible: whole, once, and never over another file."""

import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.scratch import MANIFEST, fresh, made, remove_tree
from workers.site import Destination, OpenDirectory

log = logging.getLogger("h2kbus.worker")

_FILE_MODE = 0o640
SCRATCH_PREFIX = ".h2kbus-"
_REMOVAL_SECONDS = 60.0
_ERRNO_CODES = {
    errno.ENOSPC: ErrorCode.NO_SPACE,
    errno.EDQUOT: ErrorCode.NO_SPACE,
    errno.EEXIST: ErrorCode.OUTPUT_EXISTS,
    errno.ENOTEMPTY: ErrorCode.OUTPUT_EXISTS,
}
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class StagedFile(msgspec.Struct, frozen=True):
    """A finished file in the scratch directory, and the path in the output directory that it is to get."""

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


@contextmanager
def open_output(destination: Destination, *, make: bool = False) -> Iterator[OpenDirectory]:
    """Hold a job's output directory open. Raises OUTPUT_UNWRITABLE or NO_SPACE."""
    with contextlib.ExitStack() as stack:
        with output_errors(destination.path):
            directory = stack.enter_context(destination.opened(make=make))
        yield directory


@asynccontextmanager
async def scratch_directory(
    output: OpenDirectory, job_id: str, token: int, is_needed: Callable[[], bool]
) -> AsyncIterator[OpenDirectory]:
    """A private directory inside the output directory, so on its filesystem, for one attempt.

    The directory goes away at the end, unless `is_needed` says that something published from it has yet
    to be settled. Raises OUTPUT_UNWRITABLE or NO_SPACE.
    """
    name = f"{SCRATCH_PREFIX}{job_id}-{token}"
    scratch = await anyio.to_thread.run_sync(_make_scratch, output, name)
    try:
        yield scratch
    finally:
        os.close(scratch.descriptor)
        if not is_needed():
            # Its name is this attempt's alone: whoever removes it later harms nobody.
            await removed_in_time(name, lambda: remove_scratch(output, name))


async def removed_in_time(name: str, remove: Callable[[], None]) -> None:
    """Remove what is nobody's result, whatever is cancelled, and wait a minute for a disk that hangs.

    After that it goes on alone, and may end at any time; what took its place must not mind.
    """
    with anyio.move_on_after(_REMOVAL_SECONDS, shield=True) as removal:
        await anyio.to_thread.run_sync(remove, abandon_on_cancel=True)
    if removal.cancelled_caught:
        log.warning("%s is not removed yet, and goes on alone: its disk is slow or hangs", name)


def require_free(output: OpenDirectory, *targets: Path) -> None:
    """Raise OUTPUT_EXISTS if one of the names is taken, before any work is done."""
    for target in targets:
        with output_errors(target):
            if os.path.lexists(output.inside / target.name):
                raise OperationFailed(ErrorCode.OUTPUT_EXISTS, f"{target} exists already and is left alone")


def free_bytes(directory: Path) -> int:
    """How many bytes an unprivileged writer may still put there."""
    with output_errors(directory):
        status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


async def keep_evidence(output: OpenDirectory, files: Sequence[StagedFile]) -> frozenset[Path]:
    """Let a failed attempt's files stay, and return the names that they got.

    One whose name is taken, or that the disk does not take, is left out: the attempt has a better reason
    to fail than its evidence.
    """
    return await anyio.to_thread.run_sync(_keep_evidence, output, files)


async def sync_file(path: Path) -> None:
    """Return when a file that a tool has made is on stable storage, not only in the page cache.

    Cancelling it does not wait for a disk that hangs. Raises TOOL_FAILED if it is none.
    """
    with output_errors(path):
        await anyio.to_thread.run_sync(_sync, path, abandon_on_cancel=True)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about an output into a job's error, in one table."""
    try:
        yield
    except OSError as error:
        code = _ERRNO_CODES.get(error.errno or 0, ErrorCode.OUTPUT_UNWRITABLE)
        raise OperationFailed(code, f"{path}: {error.strerror}") from error


def _make_scratch(output: OpenDirectory, name: str) -> OpenDirectory:
    with output_errors(output.path):
        if os.path.lexists(output.inside / name):
            remove_tree(output.inside / name)
        os.mkdir(name, mode=0o700, dir_fd=output.descriptor)
        scratch = open_directory(output, name)
    try:
        with output_errors(output.path):
            _require_own(scratch)
    except OperationFailed:
        os.close(scratch.descriptor)
        raise
    return scratch


def _require_own(scratch: OpenDirectory) -> None:
    """Raise OUTPUT_UNWRITABLE for a directory that somebody has put in the place of the one just made.

    Sandboxes mount the file that is made for it read-only, so that it has to be there.
    """
    if os.fstat(scratch.descriptor).st_uid != owner_of_new(scratch, MANIFEST):
        (scratch.inside / MANIFEST).unlink(missing_ok=True)
        message = f"{scratch.path} was exchanged while it was being made"
        raise OperationFailed(ErrorCode.OUTPUT_UNWRITABLE, message)


def owner_of_new(directory: OpenDirectory, name: str) -> int:
    """Make a file of this name, and say whose it is: on some filesystems nothing belongs to who has made it.

    Raises OSError.
    """
    with fresh(directory.inside / name) as file:
        return os.fstat(file.fileno()).st_uid


def remove_scratch(output: OpenDirectory, name: str) -> None:
    """Remove an attempt's directory, or say why it stays."""
    try:
        remove_tree(output.inside / name)
    except FileNotFoundError:
        return
    except (OSError, OperationFailed) as error:
        log.warning("%s stays, and can be removed by hand: %s", output.path / name, error)


def open_directory(parent: OpenDirectory, name: str) -> OpenDirectory:
    """Open a directory of an open one; whoever calls this closes its descriptor. Raises OSError."""
    return OpenDirectory(parent.path / name, os.open(name, _LIST, dir_fd=parent.descriptor))


def finish_file(path: Path) -> os.stat_result:
    """Make a finished file durable, with the mode of a result, and say what it is."""
    with output_errors(path), made(path) as file:
        os.fchmod(file.fileno(), _FILE_MODE)
        os.fsync(file.fileno())
        return os.fstat(file.fileno())


def _sync(path: Path) -> None:
    """Opened by the thread that closes it: nobody else may be there any more to do so."""
    with made(path) as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on stable storage."""
    with output_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _keep_evidence(output: OpenDirectory, files: Sequence[StagedFile]) -> frozenset[Path]:
    kept = set()
    for each in files:
        with contextlib.suppress(OSError, OperationFailed):
            finish_file(each.source)
            place_file(output, each)
            kept.add(each.target)
    return frozenset(kept)


def place_file(output: OpenDirectory, file: StagedFile) -> None:
    """Give the file its name in one step that fails if the name is taken.

    Where there are no hard links, an empty file made for the purpose holds the name until the rename.
    """
    target = output.inside / file.target.name
    try:
        os.link(file.source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _FILE_MODE))
        try:
            file.source.rename(target)
        except OSError:
            target.unlink()
            raise
