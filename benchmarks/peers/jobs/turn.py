"""What the clients have in common: the server's address, the numbers, and how the end is told."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Final

URL: Final = os.environ.get("PEER_URL", "")
PRODUCERS: Final = 64
"""Submissions under way at once, where a client can have several: as many as the bare loop has."""
SLOTS: Final = 10
"""Jobs at once, as many as a worker of h2kbus has."""
POLL_SECONDS: Final = 0.02
DEADLINE_SECONDS: Final = 300.0


def numbers() -> tuple[int, int]:
    """How many jobs to warm up with, and how many to measure."""
    jobs = int(sys.argv[1])
    return max(jobs // 10, 1), jobs


def tell(began: float, done: int, expected: int) -> None:
    """Print the seconds since `began` (now is the end); exits when not all jobs have ended."""
    seconds = time.perf_counter() - began
    if done != expected:
        sys.exit(f"only {done} of {expected} jobs have ended")
    sys.stdout.write(json.dumps({"seconds": seconds}) + "\n")


def wait_until(reached: Callable[[], bool]) -> None:
    """Ask until it is so. Exits after five minutes."""
    until = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        if time.monotonic() > until:
            sys.exit(f"the jobs have not ended within {DEADLINE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
