"""What a tool writes goes on its way to the disk while the tool still writes: little is left for the sync.

The kernel begins by itself only after 30 seconds, or with a tenth of the memory dirty
(docs/decisions/0040-results-are-written-out-while-they-are-made.md).
"""

import ctypes
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
    hastening = anyio.CancelScope()

    async def writing() -> None:
        try:
            await write()
        finally:
            hastening.cancel()

    async def hasten() -> None:
        with hastening:
            await _hasten(path)

    await side_by_side(writing, hasten)


def begin_writeback(file: IO[bytes]) -> bool:
    """Have all dirty pages of a file sent to its disk, without waiting for them; sync_file_range(2).

    False where that is not possible: the kernel, a container's filter or the filesystem does not have the
    call, or the disk does not take the pages, as the sync at the end will say.
    """
    whole = (ctypes.c_int64(0), ctypes.c_int64(_TO_THE_END))
    flags = ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
    return bool(_LIBC.sync_file_range(ctypes.c_int(file.fileno()), *whole, flags) == 0)


async def _hasten(path: Path) -> None:
    """Until cancelled, which waits for no call: a disk that hangs holds up nobody."""
    possible = True
    while possible:
        await anyio.sleep(INTERVAL_SECONDS)
        possible = await anyio.to_thread.run_sync(_begin, path, abandon_on_cancel=True)


def _begin(path: Path) -> bool:
    """Opened for each call, by the thread that closes it: nobody else may be there any more to do so."""
    try:
        file = made(path)
    except OSError:
        return True  # It is not there yet, or the sync will say why.
    with file:
        return begin_writeback(file)
