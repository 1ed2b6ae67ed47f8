"""What a tool writes goes on its way to the disk while the tool still writes: little is left for the sync.

The kernel begins by itself only after 30 seconds, or with a tenth of the memory dirty
(docs/decisions/0040-results-are-written-out-while-they-are-made.md).
"""

import ctypes
import errno
import os
from functools import partial
from pathlib import Path
from typing import IO, Final

import anyio

from workers.outputs import output_errors
from workers.scratch import made
from workers.side_by_side import Step, side_by_side

INTERVAL_SECONDS: Final = 0.02
"""More often gave nothing; with 0.05 s a quarter of the gain was lost (docs/performance-conversion.md)."""

_SYNC_FILE_RANGE_WRITE: Final = 2
_TO_THE_END: Final = 0
_WITHOUT: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ESPIPE})
"""What a kernel, a container's filter or a filesystem says that does not have the call."""


async def with_writeback(path: Path, write: Step) -> None:
    """Run `write` to its end, and meanwhile have the kernel write out what is in the file at `path`.

    The file may come later. It still has to be synced: this hastens, and promises nothing. Raises what
    `write` raises, TOOL_FAILED if something else than a file is there, and the code of an output's error
    if the disk does not take it.
    """
    ended = anyio.Event()

    async def writing() -> None:
        try:
            await write()
        finally:
            ended.set()

    await side_by_side(writing, partial(_hasten, path, ended))


def begin_writeback(descriptor: int) -> bool:
    """Have all dirty pages of a file sent to its disk, without waiting for them; sync_file_range(2).

    Says whether that can be done here at all. Raises OSError if the disk does not take them.
    """
    call = ctypes.CDLL(None, use_errno=True).sync_file_range
    whole = (ctypes.c_int64(0), ctypes.c_int64(_TO_THE_END))
    if call(ctypes.c_int(descriptor), *whole, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _WITHOUT:
        return False
    raise OSError(number, os.strerror(number))


async def _hasten(path: Path, ended: anyio.Event) -> None:
    with output_errors(path):
        while not await _is_over(ended):
            file = _opened(path)
            if file is not None:
                with file:
                    await _write_out(file, ended)
                return


def _opened(path: Path) -> IO[bytes] | None:
    try:
        return made(path)
    except FileNotFoundError:
        return None


async def _write_out(file: IO[bytes], ended: anyio.Event) -> None:
    possible = True
    while possible and not await _is_over(ended):
        # A disk that hangs must not keep an attempt from ending.
        possible = await anyio.to_thread.run_sync(begin_writeback, file.fileno(), abandon_on_cancel=True)


async def _is_over(ended: anyio.Event) -> bool:
    with anyio.move_on_after(INTERVAL_SECONDS):
        await ended.wait()
    return ended.is_set()
