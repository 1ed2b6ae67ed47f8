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


class Stopwatch:
    """The measured time. It prints a line when it begins and another when it stops, for who looks on."""

    def __init__(self) -> None:
        _say({"began": True})
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """All jobs have ended."""
        seconds, cpu_seconds = time.perf_counter() - self._began, time.process_time() - self._cpu
        _say({"seconds": seconds, "cpu_seconds": cpu_seconds})


def require_all(done: int, expected: int) -> None:
    """Exits when not all jobs have ended."""
    if done != expected:
        sys.exit(f"only {done} of {expected} jobs have ended")


def _say(told: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def wait_until(reached: Callable[[], bool]) -> None:
    """Ask until it is so. Exits after five minutes."""
    until = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        if time.monotonic() > until:
            sys.exit(f"the jobs have not ended within {DEADLINE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
