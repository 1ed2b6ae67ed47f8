"""No-op jobs from submission to COMPLETED, beside the bare loop, turn by turn in one run."""

import time
from typing import Any, Final, NamedTuple

import anyio

from h2kbus.cli.bench.bare import bare_rate
from h2kbus.cli.bench.fleet import SLOTS, Fleet, noop_job, running_fleet
from h2kbus.errors import ErrorCode, OperationFailed
from subjects.states import State

ROUNDS: Final = 3
JOBS: Final = 6000
SYNCED_JOBS: Final = 600
WIDE: Final = 64
"""Jobs at once of the second bare loop: more than the protocol lets one worker have."""
POLL_SECONDS: Final = 0.02


class Cost(NamedTuple):
    """How long so many jobs took, and the processor time of all processes behind them, in seconds.

    Other work on the machine changes the processor time least.
    """

    jobs: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor time of one job, in milliseconds."""
        return 1000 * self.cpu_seconds / self.jobs


async def measure(jobs: int | None = None) -> dict[str, Any]:
    """The server's default durability first, as other tools are measured; then with every write synced."""
    async with running_fleet(sync_always=False) as fleet:
        figures = await _compare(fleet, jobs or JOBS)
    async with running_fleet(sync_always=True) as fleet:
        synced = await _compare(fleet, min(jobs or SYNCED_JOBS, SYNCED_JOBS))
    return {**figures, "synced": synced}


async def _compare(fleet: Fleet, jobs: int) -> dict[str, Any]:
    await pipeline_seconds(fleet, max(jobs // 10, 1))
    bare, every, whole = 0.0, 0.0, 0.0
    for run in range(ROUNDS):
        bare += jobs / await bare_rate(fleet.bus, fleet.settings, jobs, SLOTS, run)
        every += jobs / await bare_rate(fleet.bus, fleet.settings, jobs, SLOTS, run, every_write=True)
        whole += await pipeline_seconds(fleet, jobs)
    wide = await bare_rate(fleet.bus, fleet.settings, jobs, WIDE, ROUNDS)
    return {
        "ratio": round(bare / whole, 3),
        "ratio_to_every_write": round(every / whole, 3),
        "jobs_per_s": round(ROUNDS * jobs / whole),
        "bare_jobs_per_s": round(ROUNDS * jobs / bare),
        "bare_every_write_jobs_per_s": round(ROUNDS * jobs / every),
        "bare_wide_jobs_per_s": round(wide),
        "jobs": ROUNDS * jobs,
    }


async def pipeline_seconds(fleet: Fleet, jobs: int) -> float:
    """Submit that many, wait until all are acknowledged, and see that each one is COMPLETED."""
    return (await pipeline_cost(fleet, jobs)).seconds


async def pipeline_cost(fleet: Fleet, jobs: int) -> Cost:
    """The same, with the processor time that it took."""
    bus = fleet.bus
    used, began = fleet.cpu_seconds(), time.perf_counter()
    ids = [job_id async for job_id in bus.submit_many(noop_job() for _ in range(jobs))]
    while await waiting(fleet):  # noqa: ASYNC110 - only the server knows, and it is cheap to ask
        await anyio.sleep(POLL_SECONDS)
    cost = Cost(jobs, time.perf_counter() - began, fleet.cpu_seconds() - used)
    found = await bus.store.find_many(ids)
    done = sum(1 for entry in found if entry is not None and entry.record.state is State.COMPLETED)
    if done != jobs:
        raise OperationFailed(ErrorCode.INTERNAL, f"only {done} of {jobs} jobs are COMPLETED")
    return cost


async def waiting(fleet: Fleet) -> int:
    """How many jobs the bus has that have not ended: with the scheduler, in a lane, or with the worker."""
    topology = fleet.bus.topology
    left = 0
    for stream in (topology.commands_stream, topology.jobs_stream):
        info = await fleet.bus.connection.api(f"STREAM.INFO.{stream}")
        left += info["state"]["messages"]
    return left
