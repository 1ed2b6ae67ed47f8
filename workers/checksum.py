"""Digests of files and of parts of them, hashed in one pass however many algorithms are asked for."""

import hashlib
import os
from collections.abc import Callable, Collection

import anyio

from workers.formats.header import Window

_CHUNK = 8 * 1024 * 1024

OnBytes = Callable[[int, int], None]


async def digests(
    descriptor: int, window: Window, algorithms: Collection[str], on_bytes: OnBytes
) -> dict[str, str]:
    """The digests, in hex, of a part of an open file, by the names that hashlib gives the algorithms.

    `on_bytes` hears after each chunk how many bytes are done, and of how many.
    """
    hashes = {each: hashlib.new(each, usedforsecurity=False) for each in algorithms}
    done = 0

    def step() -> int:
        chunk = os.pread(descriptor, min(_CHUNK, window.size - done), window.offset + done)
        for each in hashes.values():
            each.update(chunk)
        return len(chunk)

    while count := await anyio.to_thread.run_sync(step):
        done += count
        on_bytes(done, window.size)
    return {name: each.hexdigest() for name, each in hashes.items()}
