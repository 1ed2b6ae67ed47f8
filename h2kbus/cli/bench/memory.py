"""What the processes weigh: idle, and after tens of thousands of jobs."""

from typing import Any, Final

from h2kbus.cli.bench.fleet import running_fleet
from h2kbus.cli.bench.pipeline import pipeline_seconds

JOBS: Final = 50_000
STEPS: Final = 10


async def measure(jobs: int | None = None) -> dict[str, Any]:
    """Resident memory of the server, the scheduler and the worker, in MiB, as the kernel counts it.

    The server keeps the records and events of all these jobs: its growth is that history's.
    """
    step = max((jobs or JOBS) // STEPS, 1)
    async with running_fleet(sync_always=False) as fleet:
        samples = [fleet.memory_mb()]
        for _ in range(STEPS):
            await pipeline_seconds(fleet, step)
            samples.append(fleet.memory_mb())
    return {
        name: {
            "idle_mb": idle,
            "after_first_jobs_mb": samples[1][name],
            "after_half_mb": samples[(STEPS + 1) // 2][name],
            "after_all_jobs_mb": samples[-1][name],
            "growth_mb": round(samples[-1][name] - samples[1][name], 1),
            "jobs": STEPS * step,
        }
        for name, idle in samples[0].items()
    }
