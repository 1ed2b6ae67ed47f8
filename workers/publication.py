"""Giving results their names: whole, once, never over another file, and undone if the job ends otherwise.

An attempt works in a scratch directory of its own, beside its outputs. Its finished files get their names
by hard links out of there, after a manifest of them was made durable and the bus has confirmed the lease.
The directory stays until the job's record says how the attempt ended. So a worker that dies in between
leaves everything that the next one has to know:

- Renaming the directory revokes the attempt: of several who try, one has done it.
- The manifest tells which names are the attempt's own. If all of them stand, the next attempt adopts them
  with their result. If only some do, it takes those away and starts anew. Before that it removes the staged
  files: from then on the revoked attempt cannot give anything a name, however long it was suspended,
  because what it would link is gone.

The output directory is held open meanwhile, and everything in it is reached through that descriptor.
"""

import contextlib
import logging
import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Final

import anyio
import msgspec

from h2kbus.errors import InvalidMessage, OperationFailed
from subjects.codec import decode
from workers.context import OperationResult
from workers.outputs import (
    SCRATCH_PREFIX,
    StagedFile,
    finish_file,
    open_directory,
    output_errors,
    owner_of_new,
    place_file,
    remove_scratch,
    removed_in_time,
    sync_directory,
)
from workers.scratch import MANIFEST, fresh, remove_tree
from workers.site import Destination, OpenDirectory

log = logging.getLogger("h2kbus.worker")

_REVOKED: Final = ".revoked"
_PROBE: Final = "owner"
_MAX_MANIFEST_BYTES: Final = 16 << 20
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Name(msgspec.Struct, frozen=True):
    """A path that an attempt gives, and how to know the file again that has it."""

    target: str
    inode: int
    mtime_ns: int

    @property
    def base(self) -> str:
        """The name in the output directory."""
        return PurePath(self.target).name


class _Manifest(msgspec.Struct, frozen=True):
    """`scratch` is what the directory was called that it is in: a directory may be given another's name."""

    scratch: str
    names: tuple[_Name, ...]
    result: OperationResult


class Publication:
    """What one attempt has published, until it is known whether that stands."""

    def __init__(self, destination: Destination, scratch: str, result: OperationResult) -> None:
        """`scratch` is the name of the attempt's directory."""
        self.result = result
        self._destination = destination
        self._scratch = scratch

    async def keep(self) -> None:
        """The record says COMPLETED: the scratch directory has done its service."""
        await removed_in_time(self._scratch, lambda: self._conclude(remove_scratch))

    async def withdraw(self) -> None:
        """The result does not stand: take the names back, unless another attempt adopted them.

        However long the disk takes: until they are gone the job's message stays unanswered, so that another
        worker sees to them if this one dies.
        """
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._conclude, _withdraw)

    def _conclude(self, step: Callable[[OpenDirectory, str], None]) -> None:
        for output in _present(self._destination):
            step(output, self._scratch)


async def publish(
    destination: Destination,
    output: OpenDirectory,
    scratch: OpenDirectory,
    files: Sequence[StagedFile],
    result: OperationResult,
    guard: Callable[[], Awaitable[None]],
) -> Publication:
    """Give finished files their final names, all of them or none.

    Everything is on stable storage before `guard` is asked, and visible only after it agreed. From then
    on it cannot be cancelled. Raises OUTPUT_EXISTS, OUTPUT_UNWRITABLE or NO_SPACE, and what `guard` raises.
    """
    names = await anyio.to_thread.run_sync(_prepare, scratch, files, result)
    await guard()
    await anyio.to_thread.run_sync(_place_all, output, files, names)
    return Publication(destination, scratch.path.name, result)


async def recover(destination: Destination, job_id: str, *, before: int) -> Publication | None:
    """Find out what earlier attempts of the job left, those with tokens below `before`.

    They are revoked. The publication that stands whole is returned, and everything else is cleared away.
    """
    return await anyio.to_thread.run_sync(_recover, destination, job_id, before)


async def clear_away(destination: Destination, job_id: str, *, keep_outputs: bool) -> None:
    """The job has ended: remove whatever its attempts left, and the names they gave unless those stand."""
    undo = remove_scratch if keep_outputs else _undo
    await anyio.to_thread.run_sync(_clear_away, destination, job_id, undo)


def _prepare(scratch: OpenDirectory, files: Sequence[StagedFile], result: OperationResult) -> list[_Name]:
    names = []
    for each in files:
        status = finish_file(each.source)
        names.append(_Name(str(each.target), status.st_ino, status.st_mtime_ns))
    manifest = scratch.inside / MANIFEST
    with output_errors(scratch.path / MANIFEST), fresh(manifest) as file:
        file.write(msgspec.json.encode(_Manifest(scratch.path.name, tuple(names), result)))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(scratch.inside)
    return names


def _place_all(output: OpenDirectory, files: Sequence[StagedFile], names: Sequence[_Name]) -> None:
    try:
        for each in files:
            with output_errors(each.target):
                place_file(output, each)
        sync_directory(output.inside)
    except OperationFailed:
        _take_back(output, names)
        raise


def _take_back(output: OpenDirectory, names: Sequence[_Name]) -> None:
    """Remove these names where they are still the attempt's: by now they may be somebody else's."""
    for name in names:
        if _stands(output, name):
            (output.inside / name.base).unlink(missing_ok=True)


def _recover(destination: Destination, job_id: str, before: int) -> Publication | None:
    found = None
    for output in _present(destination):
        for scratch in _revoked(output, job_id, before):
            manifest = _manifest(output, scratch)
            if found is None and manifest is not None and _is_whole(output, manifest):
                found = Publication(destination, scratch, manifest.result)
            else:
                _undo(output, scratch)
    return found


def _present(destination: Destination) -> Iterator[OpenDirectory]:
    """The output directory, once, if it is there: where none is, no attempt has left anything.

    One that cannot be opened is left alone. What is in it stays until somebody looks after the host.
    """
    with contextlib.ExitStack() as stack:
        try:
            output = stack.enter_context(destination.opened())
        except FileNotFoundError:
            return
        except (OSError, OperationFailed) as error:
            log.warning("what jobs left in %s cannot be looked at: %s", destination.path, error)
            return
        yield output


def _is_whole(output: OpenDirectory, manifest: _Manifest) -> bool:
    """Whether every name stands, for good: the attempt may have died before that was certain."""
    if not manifest.names or not all(_stands(output, name) for name in manifest.names):
        return False
    sync_directory(output.inside)
    return True


def _clear_away(destination: Destination, job_id: str, undo: Callable[[OpenDirectory, str], None]) -> None:
    for output in _present(destination):
        for scratch in _revoked(output, job_id, None):
            undo(output, scratch)


def _withdraw(output: OpenDirectory, scratch: str) -> None:
    revoked = _revoke(output, scratch)
    if revoked is not None:
        _undo(output, revoked)


def _undo(output: OpenDirectory, revoked: str) -> None:
    """Take back the names that a revoked attempt gave, then remove what is left of it.

    What it might still give a name goes first. The manifest goes last: whoever dies here has a successor.
    """
    manifest = _manifest(output, revoked)
    _remove_staged(output, revoked)
    _take_back(output, manifest.names if manifest else ())
    remove_scratch(output, revoked)


def _remove_staged(output: OpenDirectory, revoked: str) -> None:
    with contextlib.suppress(OSError, OperationFailed), _held(output, revoked) as scratch:
        # Directories last: what is in them may hold up what comes after, and it is files that get names.
        for each in sorted(os.scandir(scratch.inside), key=lambda each: each.is_dir(follow_symlinks=False)):
            if each.name == MANIFEST:
                continue
            if each.is_dir(follow_symlinks=False):
                remove_tree(Path(each.path))
            else:
                os.unlink(each.name, dir_fd=scratch.descriptor)


def _revoked(output: OpenDirectory, job_id: str, before: int | None) -> Iterator[str]:
    """Revoke the job's attempts below a token, or all; the newest first, the revoked ones too."""
    shape = re.compile(re.escape(f"{SCRATCH_PREFIX}{job_id}-") + r"(\d+)(?:\.revoked)?")
    try:
        names = [each.name for each in os.scandir(output.inside) if each.is_dir(follow_symlinks=False)]
    except OSError:
        return
    tokens = {name: int(match[1]) for name in names if (match := shape.fullmatch(name))}
    for name in sorted(tokens, key=lambda each: tokens[each], reverse=True):
        if before is None or tokens[name] < before:
            revoked = _revoke(output, name)
            if revoked is not None:
                yield revoked


def _revoke(output: OpenDirectory, scratch: str) -> str | None:
    """Take an attempt's directory away from it; None when somebody else has done so."""
    if scratch.endswith(_REVOKED):
        return scratch
    with contextlib.suppress(OSError):
        (output.inside / scratch).rename(output.inside / f"{scratch}{_REVOKED}")
        return f"{scratch}{_REVOKED}"
    return None


@contextlib.contextmanager
def _held(output: OpenDirectory, scratch: str) -> Iterator[OpenDirectory]:
    """An attempt's directory by a descriptor, whatever takes its name meanwhile. Raises OSError."""
    directory = open_directory(output, scratch)
    try:
        yield directory
    finally:
        os.close(directory.descriptor)


def _manifest(output: OpenDirectory, scratch: str) -> _Manifest | None:
    """What the attempt was about to publish; None for one that did not come so far.

    Others who may write to the output directory may say what they like there: that counts as none, too.
    """
    with contextlib.suppress(OSError, InvalidMessage), _held(output, scratch) as directory:
        manifest = decode(_Manifest, _read_manifest(directory))
        if manifest.scratch == scratch.removesuffix(_REVOKED):
            return manifest
    return None


def _read_manifest(scratch: OpenDirectory) -> bytes:
    with os.fdopen(os.open(MANIFEST, _READ, dir_fd=scratch.descriptor), "rb") as file:
        found = [os.fstat(scratch.descriptor), os.fstat(file.fileno())]
        if not stat.S_ISREG(found[1].st_mode) or not _are_own(scratch, {each.st_uid for each in found}):
            log.warning("%s is not of this worker, so it is not believed", scratch.path / MANIFEST)
            return b""
        return file.read(_MAX_MANIFEST_BYTES)


def _are_own(scratch: OpenDirectory, owners: set[int]) -> bool:
    return owners == {os.geteuid()} or owners == {owner_of_new(scratch, _PROBE)}


def _stands(output: OpenDirectory, name: _Name) -> bool:
    with contextlib.suppress(OSError):
        status = (output.inside / name.base).lstat()
        known = (status.st_ino, status.st_mtime_ns) == (name.inode, name.mtime_ns)
        return known and stat.S_ISREG(status.st_mode)
    return False
