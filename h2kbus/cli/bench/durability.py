"""The pipeline with each way to keep what was acknowledged, turn by turn: what safety costs."""

import statistics
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from h2kbus.cli.bench.fleet import running_fleet
from h2kbus.cli.bench.pipeline import pipeline_seconds

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
    rates: dict[str, list[float]] = {name: [] for name in MODES}
    for _ in range(ROUNDS):
        for name, mode in MODES.items():
            async with running_fleet(sync_always=mode.sync_always, replicas=mode.replicas) as fleet:
                await pipeline_seconds(fleet, max(count // 10, 1))
                rates[name].append(count / await pipeline_seconds(fleet, count))
    return {name: _row(found, rates[DEFAULT], MODES[name]) for name, found in rates.items()}


def _row(found: list[float], default: list[float], mode: Mode) -> dict[str, Any]:
    return {
        "jobs_per_s": round(statistics.median(found)),
        "slowest": round(min(found)),
        "fastest": round(max(found)),
        "of_default": round(statistics.median(a / b for a, b in zip(found, default, strict=True)), 3),
        "outlives": mode.outlives,
    }
