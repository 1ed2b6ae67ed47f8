"""The pipeline with each way to keep what was acknowledged, turn by turn: what safety costs."""

import statistics
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from h2kbus.cli.bench.fleet import running_fleet
from h2kbus.cli.bench.pipeline import Cost, pipeline_cost, pipeline_seconds

ROUNDS: Final = 3
JOBS: Final = 2000
NODES: Final = 3


class Mode(msgspec.Struct, frozen=True, kw_only=True):
    """How the servers keep what they acknowledge, and what that outlives."""

    sync_always: bool
    replicas: int
    outlives: str


DEFAULT: Final = "one server, synced every 2 min"
MODES: Final[Mapping[str, Mode]] = {
    DEFAULT: Mode(sync_always=False, replicas=1, outlives="the server's death"),
    "one server, sync_interval: always": Mode(
        sync_always=True, replicas=1, outlives="the server's death, a power cut"
    ),
    "three replicas, synced every 2 min": Mode(
        sync_always=False,
        replicas=NODES,
        outlives="the loss of a node, and a power cut that leaves two of them",
    ),
    "three replicas, sync_interval: always": Mode(
        sync_always=True, replicas=NODES, outlives="the loss of a node, a power cut of all"
    ),
}


async def measure(jobs: int | None = None) -> dict[str, Any]:
    """Jobs per second of each mode. All servers are fresh for each turn, and all are on this machine."""
    count = jobs or JOBS
    costs: dict[str, list[Cost]] = {name: [] for name in MODES}
    for _ in range(ROUNDS):
        for name, mode in MODES.items():
            async with running_fleet(sync_always=mode.sync_always, replicas=mode.replicas) as fleet:
                await pipeline_seconds(fleet, max(count // 10, 1))
                costs[name].append(await pipeline_cost(fleet, count))
    return {name: _row(found, costs[DEFAULT], MODES[name]) for name, found in costs.items()}


def _row(found: list[Cost], default: list[Cost], mode: Mode) -> dict[str, Any]:
    rates = [each.rate for each in found]
    pairs = zip(rates, default, strict=True)
    return {
        "jobs_per_s": round(statistics.median(rates)),
        "slowest": round(min(rates)),
        "fastest": round(max(rates)),
        "of_default": round(statistics.median(rate / beside.rate for rate, beside in pairs), 3),
        "cpu_ms_per_job": round(statistics.median(each.cpu_ms for each in found), 2),
        "outlives": mode.outlives,
    }
