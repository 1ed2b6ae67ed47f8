"""Reading the files of a job's output directory again, by descriptors that no link leads elsewhere."""

import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import anyio

from h2kbus.artifacts import CHUNK_BYTES
from h2kbus.errors import ErrorCode, OperationFailed
from workers.outputs import open_output
from workers.site import Destination

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


async def content_of(
    destination: Destination, file: Path, *, start: int = 0, most: int, whole: bool = False
) -> AsyncGenerator[bytes]:
    """A file of a job's outputs, in chunks, from `start` on, at most `most` bytes of it.

    With `whole` a larger file is refused. Raises OSError and OperationFailed, for a link too.
    """
    if file.parent != destination.path:
        raise _refusal(f"{file} is not in {destination.path}")
    descriptor, size = await anyio.to_thread.run_sync(_opened, destination, file.name)
    try:
        if whole and size - start > most:
            raise _refusal(f"{file} has {size} bytes, and at most {most} are kept")
        end = min(size, start + most)
        while start < end:
            want = min(CHUNK_BYTES, end - start)
            chunk = await anyio.to_thread.run_sync(os.pread, descriptor, want, start)
            if not chunk:
                return
            start += len(chunk)
            yield chunk
    finally:
        os.close(descriptor)


def _opened(destination: Destination, name: str) -> tuple[int, int]:
    """A descriptor of the file, and its size now."""
    with open_output(destination) as output:
        descriptor = os.open(name, _READ, dir_fd=output.descriptor)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _refusal(f"{destination.path / name} is no ordinary file")
    return descriptor, status.st_size


def _refusal(words: str) -> OperationFailed:
    return OperationFailed(ErrorCode.OUTPUT_UNWRITABLE, words)
