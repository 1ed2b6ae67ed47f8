"""Evidence on disk, outside of the bus: every execution writes its token here, whatever the bus believes."""

import fcntl
import os
import time
from pathlib import Path

import msgspec


class Line(msgspec.Struct, frozen=True):
    """One thing that an execution did. `at` is the host's monotonic clock, the same for all processes."""

    event: str
    job_id: str
    token: int
    attempt: int
    worker_pid: int
    at: float


def append(ledger: Path, event: str, job_id: str, *, token: int, attempt: int) -> None:
    line = Line(event, job_id, token, attempt, os.getpid(), time.monotonic())
    with ledger.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(msgspec.json.encode(line) + b"\n")


def read(ledger: Path) -> list[Line]:
    """Everything so far, in the order in which it was written."""
    if not ledger.exists():
        return []
    return [msgspec.json.decode(line, type=Line) for line in ledger.read_bytes().splitlines()]
