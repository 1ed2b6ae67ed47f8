"""The client of a campaign: submits the jobs, and hears how they end."""

import contextlib
import functools
import random
import time
from pathlib import Path
from typing import Any, Final

import anyio

from h2kbus.client import Bus
from h2kbus.errors import BusError, H2KBusError
from subjects.codec import decode
from subjects.events import ProgressEvent
from subjects.spec import JobSpec
from subjects.states import State
from tests.chaos import workload
from tests.chaos.history import History
from tests.chaos.nemesis import insist

IN_FLIGHT: Final = 60
"""Jobs that have not ended while new ones are submitted."""


class Driver:
    """Submits the jobs and hears how they end."""

    def __init__(self, bus: Bus, place: Path, history: History, rng: random.Random) -> None:
        self._bus = bus
        self._history = history
        self.accepted: dict[str, JobSpec] = {}
        self.changed: dict[str, list[float]] = {}
        self.open: set[str] = set()
        self._place = place
        self._rng = rng

    async def submit_all(self, jobs: int, seconds: float) -> None:
        """Submit so many jobs, spread over so many seconds."""
        began = anyio.current_time()
        for number in range(jobs):
            await anyio.sleep_until(began + number * seconds / jobs)
            while len(self.open) >= IN_FLIGHT:
                await anyio.sleep(0.02)
            spec = workload.plan(self._rng, number, self._place)
            job_id = spec.job_id or ""
            self.open.add(job_id)
            self._history.note("invoke", "submit", job_id=job_id)
            await insist(functools.partial(self._bus.submit, spec))
            self._history.note("ok", "submit", job_id=job_id)
            self.accepted[job_id] = spec

    async def listen(self) -> None:
        """Hear the live events; what is missed is made up for by looking from time to time."""
        bus = self._bus

        def on_event(message: Any) -> None:
            with contextlib.suppress(H2KBusError):
                event = decode(ProgressEvent, message.data)
                if event.state.terminal or event.state is State.RETRYING:
                    self.changed.setdefault(event.job_id, []).append(time.monotonic())
                if event.state.terminal:
                    self.open.discard(event.job_id)

        await bus.connection.listen(f"{bus.grammar.root}.progress.*", on_event)
        while True:
            await anyio.sleep(2)
            with contextlib.suppress(BusError):
                waiting = list(self.open & set(self.accepted))
                for entry in await bus.store.find_many(waiting):
                    if entry is not None and entry.record.state.terminal:
                        self.open.discard(entry.record.job_id)
