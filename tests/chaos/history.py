"""What the campaign itself did, as it did it: each submission, and both ends of each fault."""

import os
import time
from pathlib import Path
from typing import Any, Self

import msgspec


class History:
    """Append-only, on stable storage before the campaign goes on: what is in it has happened."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def note(self, kind: str, what: str, **facts: Any) -> None:
        """`kind` is invoke, ok, fail or unknown, as of any history of a distributed system."""
        line = {"at": time.monotonic(), "kind": kind, "what": what, **facts}
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
