"""What a tool writes goes on its way to the disk while the tool still writes: little is left for the sync.

The kernel begins by itself only after 30 seconds, or with a tenth of the memory dirty
(docs/decisions/0040-results-are-written-out-while-they-are-made.md).
"""

import ctypes
from functools import partial
from pathlib import Path
from typing import IO, Final

import anyio

from workers.scratch import made
from workers.side_by_side import Step, side_by_side

INTERVAL_SECONDS: Final = 0.02
"""With 0.05 s half of the gain is lost, with 0.1 s all of it (docs/performance-conversion.md)."""

_SYNC_FILE_RANGE_WRITE: Final = 2
_TO_THE_END: Final = 0
_LIBC: Final = ctypes.CDLL(None)


async def with_writeback(path: Path, write: Step) -> None:
    """Run `write` to its end, and meanwhile have the kernel write out what is in the file at `path`.

    The file may come later. It still has to be synced: this hastens, and promises nothing. Raises what
    `write` raises, and TOOL_FAILED if something else than a file is there.
    """
    ended = anyio.Event()

    async def writing() -> None:
        try:
            await write()
        finally:
            ended.set()

    await side_by_side(writing, partial(_hasten, path, ended))


def begin_writeback(file: IO[bytes]) -> bool:
    """Have all dirty pages of a file sent to its disk, without waiting for them; sync_file_range(2).

    False where that is not possible: the kernel, a container's filter or the filesystem does not have the
    call, or the disk does not take the pages, as the sync at the end will say.
    """
    whole = (ctypes.c_int64(0), ctypes.c_int64(_TO_THE_END))
    flags = ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
    return bool(_LIBC.sync_file_range(ctypes.c_int(file.fileno()), *whole, flags) == 0)


async def _hasten(path: Path, ended: anyio.Event) -> None:
    while not await _is_over(ended):
        # A disk that hangs must hold up neither the loop nor the end of an attempt.
        file = await anyio.to_thread.run_sync(_opened, path, abandon_on_cancel=True)
        if file is not None:
            with file:
                await _write_out(file, ended)
            return


def _opened(path: Path) -> IO[bytes] | None:
    try:
        return made(path)
    except OSError:
        return None


async def _write_out(file: IO[bytes], ended: anyio.Event) -> None:
    possible = True
    while possible and not await _is_over(ended):
        possible = await anyio.to_thread.run_sync(begin_writeback, file, abandon_on_cancel=True)


async def _is_over(ended: anyio.Event) -> bool:
    with anyio.move_on_after(INTERVAL_SECONDS):
        await ended.wait()
    return ended.is_set()
