"""How soon an idle bus picks a job up: from submit returning to the RUNNING event at the client."""

import statistics
import time
from typing import Any, Final

import anyio

from h2kbus.cli.bench.fleet import Fleet, noop_job, running_fleet
from h2kbus.watch import EventFeed
from subjects.states import State

JOBS: Final = 200
PAUSE_SECONDS: Final = 0.03
WARM_UP: Final = 20


async def measure() -> dict[str, Any]:
    """On the embedded server as it is by default, with every write synced."""
    async with running_fleet(sync_always=True) as fleet:
        taken = [await _pick_up(fleet) for _ in range(JOBS + WARM_UP)][WARM_UP:]
    milliseconds = sorted(seconds * 1000 for seconds in taken)
    return {
        "p50_ms": round(statistics.median(milliseconds), 2),
        "p99_ms": round(milliseconds[int(len(milliseconds) * 0.99)], 2),
        "max_ms": round(milliseconds[-1], 2),
        "jobs": JOBS,
    }


async def _pick_up(fleet: Fleet) -> float:
    bus = fleet.bus
    await anyio.sleep(PAUSE_SECONDS)
    async with EventFeed(bus.connection, bus.topology, "*").open() as events:
        job_id = await bus.submit(noop_job())
        submitted = time.perf_counter()
        running = None
        while True:
            event = await events.receive()
            if event.job_id != job_id:
                continue
            if event.state is State.RUNNING:
                running = time.perf_counter()
            if event.state.terminal:
                return max((running or time.perf_counter()) - submitted, 0.0)
