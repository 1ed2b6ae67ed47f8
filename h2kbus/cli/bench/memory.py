"""What a worker weighs: idle, and after tens of thousands of jobs."""

from typing import Any, Final

from h2kbus.cli.bench.fleet import Fleet, running_fleet
from h2kbus.cli.bench.pipeline import pipeline_seconds

JOBS: Final = 50_000
STEP: Final = 5_000
_MIB: Final = 1 << 20


async def measure() -> dict[str, Any]:
    """Resident memory of the worker process, in MiB, as the kernel counts it."""
    async with running_fleet(sync_always=False) as fleet:
        idle = _resident(fleet)
        sizes = []
        for _ in range(JOBS // STEP):
            await pipeline_seconds(fleet, STEP)
            sizes.append(_resident(fleet))
    return {
        "idle_worker_mb": idle,
        "after_first_jobs_mb": sizes[0],
        "after_all_jobs_mb": sizes[-1],
        "growth_mb": round(sizes[-1] - sizes[0], 1),
        "jobs": JOBS,
    }


def _resident(fleet: Fleet) -> float:
    return float(round(fleet.worker.memory_info().rss / _MIB, 1))
