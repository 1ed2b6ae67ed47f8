"""Giving results their names: whole, once, never over another file, and undone if the job ends otherwise.

An attempt works in a scratch directory of its own, beside its outputs. Its finished files get their names
by hard links out of there, after a manifest of them was made durable and the bus has confirmed the lease.
The directory stays until the job's record says how the attempt ended. So a worker that dies in between
leaves everything that the next one has to know:

- Renaming the directory revokes the attempt: from then on it cannot give anything a name, however long
  it was suspended, because the files that it would link are not where it thinks.
- The manifest tells which names are the attempt's own. If all of them stand, the next attempt adopts them
  with their result; if only some do, it takes those away and starts anew.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec

from h2kbus.errors import InvalidMessage, OperationFailed
from subjects.codec import decode
from workers.context import OperationResult
from workers.outputs import SCRATCH_PREFIX, StagedFile, finish_file, output_errors, place_file, sync_path

MANIFEST: Final = "publication.json"
_REVOKED: Final = ".revoked"
_REMOVAL_SECONDS: Final = 60.0


class _Name(msgspec.Struct, frozen=True):
    """A name that an attempt gives, and how to know the file again that has it."""

    target: str
    inode: int
    mtime_ns: int


class _Manifest(msgspec.Struct, frozen=True):
    names: tuple[_Name, ...]
    result: OperationResult


class Publication:
    """What one attempt has published, until it is known whether that stands."""

    def __init__(self, scratch: Path, result: OperationResult) -> None:
        self.result = result
        self._scratch = scratch

    async def keep(self) -> None:
        """The record says COMPLETED: the scratch directory has done its service."""
        with anyio.move_on_after(_REMOVAL_SECONDS, shield=True):
            await anyio.to_thread.run_sync(_remove, self._scratch)

    async def withdraw(self) -> None:
        """The job was given to somebody else: take the names back, unless another attempt adopted them."""
        with anyio.move_on_after(_REMOVAL_SECONDS, shield=True):
            await anyio.to_thread.run_sync(_withdraw, self._scratch)


async def publish(
    scratch: Path,
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
    await anyio.to_thread.run_sync(_place_all, files, names)
    return Publication(scratch, result)


async def recover(output_path: Path, job_id: str, *, before: int) -> Publication | None:
    """Find out what earlier attempts of the job left, those with tokens below `before`.

    They are revoked. The publication that stands whole is returned, and everything else is cleared away.
    """
    return await anyio.to_thread.run_sync(_recover, output_path, job_id, before)


async def clear_away(output_path: Path, job_id: str, *, keep_outputs: bool) -> None:
    """The job has ended: remove whatever its attempts left, and the names they gave unless those stand."""
    undo = _remove if keep_outputs else _undo
    await anyio.to_thread.run_sync(_clear_away, output_path, job_id, undo)


def _prepare(scratch: Path, files: Sequence[StagedFile], result: OperationResult) -> list[_Name]:
    names = []
    for each in files:
        finish_file(each.source)
        with output_errors(each.source):
            status = each.source.stat()
        names.append(_Name(str(each.target), status.st_ino, status.st_mtime_ns))
    manifest = scratch / MANIFEST
    with output_errors(manifest):
        manifest.write_bytes(msgspec.json.encode(_Manifest(tuple(names), result)))
    sync_path(manifest)
    sync_path(scratch)
    return names


def _place_all(files: Sequence[StagedFile], names: Sequence[_Name]) -> None:
    try:
        for each in files:
            with output_errors(each.target):
                place_file(each)
        for directory in {each.target.parent for each in files}:
            sync_path(directory)
    except OperationFailed:
        _take_back(names)
        raise


def _take_back(names: Sequence[_Name]) -> None:
    """Remove these names where they are still the attempt's: by now they may be somebody else's."""
    for name in names:
        if _stands(name):
            Path(name.target).unlink(missing_ok=True)


def _recover(output_path: Path, job_id: str, before: int) -> Publication | None:
    found = None
    for scratch in _revoked(output_path, job_id, before):
        manifest = _manifest(scratch)
        if found is None and manifest is not None and _is_whole(manifest):
            found = Publication(scratch, manifest.result)
        else:
            _undo(scratch)
    return found


def _is_whole(manifest: _Manifest) -> bool:
    """Whether every name stands, for good: the attempt may have died before that was certain."""
    if not manifest.names or not all(map(_stands, manifest.names)):
        return False
    for directory in {Path(name.target).parent for name in manifest.names}:
        sync_path(directory)
    return True


def _clear_away(output_path: Path, job_id: str, undo: Callable[[Path], None]) -> None:
    for scratch in _revoked(output_path, job_id, None):
        undo(scratch)


def _withdraw(scratch: Path) -> None:
    revoked = _revoke(scratch)
    if revoked is not None:
        _undo(revoked)


def _undo(revoked: Path) -> None:
    """Take back the names that a revoked attempt gave, then remove what is left of it."""
    manifest = _manifest(revoked)
    _take_back(manifest.names if manifest else ())
    _remove(revoked)


def _revoked(output_path: Path, job_id: str, before: int | None) -> Iterator[Path]:
    """Revoke the job's attempts below a token, or all; the newest first, the revoked ones too."""
    shape = re.compile(re.escape(f"{SCRATCH_PREFIX}{job_id}-") + r"(\d+)(?:\.revoked)?")
    try:
        names = [each.name for each in os.scandir(output_path) if each.is_dir(follow_symlinks=False)]
    except OSError:
        return
    tokens = {name: int(match[1]) for name in names if (match := shape.fullmatch(name))}
    for name in sorted(tokens, key=lambda each: tokens[each], reverse=True):
        if before is None or tokens[name] < before:
            revoked = _revoke(output_path / name)
            if revoked is not None:
                yield revoked


def _revoke(scratch: Path) -> Path | None:
    """Take an attempt's directory away from it; None when somebody else has done so."""
    if scratch.name.endswith(_REVOKED):
        return scratch
    revoked = scratch.with_name(scratch.name + _REVOKED)
    with contextlib.suppress(OSError):
        scratch.rename(revoked)
        return revoked
    return None


def _manifest(scratch: Path) -> _Manifest | None:
    """What the attempt was about to publish; None for one that did not come so far."""
    with contextlib.suppress(OSError, InvalidMessage):
        return decode(_Manifest, (scratch / MANIFEST).read_bytes())
    return None


def _stands(name: _Name) -> bool:
    with contextlib.suppress(OSError):
        status = Path(name.target).lstat()
        return (status.st_ino, status.st_mtime_ns) == (name.inode, name.mtime_ns)
    return False


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
