"""A guest's serial console as a pipe: kept in a file up to a limit, and judged as it comes."""

import contextlib
import os
from pathlib import Path
from typing import Final, Self

from workers.boot.console import Console
from workers.outputs import output_errors
from workers.scratch import fresh

MAX_CONSOLE_BYTES: Final = 16 * 1024 * 1024
"""The console's file stops growing here; what comes after is judged and dropped."""

_CHUNK: Final = 64 * 1024
_CHUNKS_AT_ONCE: Final = 16
_FULL: Final = b"\r\n[the console said more than %d bytes; the rest was not kept]\r\n"


class ConsoleTap:
    """Both ends of the pipe. `writer` is handed down to QEMU and closed here once it has it.

    A pipe instead of a file that QEMU writes itself: a guest that floods its console then waits for us,
    and cannot fill the disk.
    """

    def __init__(self, path: Path, limit_bytes: int = MAX_CONSOLE_BYTES) -> None:
        self.path = path
        self.console = Console()
        self._room = limit_bytes
        self._limit = limit_bytes
        with output_errors(path):
            self._file = fresh(path, buffering=0)
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hand_over()
        os.close(self._reader)
        self._file.close()

    def hand_over(self) -> None:
        """QEMU has its end: ours must not keep the pipe open."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def read(self) -> None:
        """Take what is there, without waiting. Raises NO_SPACE or OUTPUT_UNWRITABLE."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_CHUNKS_AT_ONCE):
                chunk = os.read(self._reader, _CHUNK)
                if not chunk:
                    return
                self._write(chunk)
                self.console.feed(chunk)

    def _write(self, chunk: bytes) -> None:
        if self._room <= 0:
            return
        kept = chunk[: self._room]
        self._room -= len(chunk)
        with output_errors(self.path):
            self._file.write(kept)
            if self._room <= 0:
                self._file.write(_FULL % self._limit)
