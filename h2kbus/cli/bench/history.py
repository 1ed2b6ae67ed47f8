"""What a job costs beside a long history: a new bus and one with many finished jobs, turn by turn."""

import statistics
from typing import Any, Final

from h2kbus.cli.bench.fleet import running_fleet
from h2kbus.cli.bench.pipeline import Cost, pipeline_cost, pipeline_seconds

FINISHED: Final = 20_000
MEASURED: Final = 2_000
ROUNDS: Final = 3


async def measure(jobs: int | None = None) -> dict[str, Any]:
    """Jobs per second on a bus with `jobs` finished records over those on one with none."""
    finished = jobs or FINISHED
    measured = min(MEASURED, finished)
    new: list[Cost] = []
    old: list[Cost] = []
    async with running_fleet(sync_always=False) as fleet:
        await pipeline_seconds(fleet, finished)
        for _ in range(ROUNDS):
            async with running_fleet(sync_always=False) as fresh:
                await pipeline_seconds(fresh, max(measured // 10, 1))
                new.append(await pipeline_cost(fresh, measured))
            old.append(await pipeline_cost(fleet, measured))
    return {
        "finished": finished,
        "jobs_per_s": round(statistics.median(each.rate for each in old)),
        "jobs_per_s_without_history": round(statistics.median(each.rate for each in new)),
        "ratio": _ratio([each.rate for each in old], [each.rate for each in new]),
        "cpu_ms_per_job": round(statistics.median(each.cpu_ms for each in old), 2),
        "cpu_ratio": _ratio([each.cpu_ms for each in old], [each.cpu_ms for each in new]),
    }


def _ratio(old: list[float], new: list[float]) -> float | None:
    """Of each round, since both were measured within the same seconds.

    None where a few jobs took less processor time than the kernel counts, which is ten milliseconds.
    """
    if 0 in new:
        return None
    return round(statistics.median(a / b for a, b in zip(old, new, strict=True)), 3)
