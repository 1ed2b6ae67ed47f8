"""Throughput with many jobs queued, beside the same with a thousand, and what the processes weigh meanwhile.

The queue is kept as deep as it is: what was executed is submitted anew, so that each job measured was
submitted, admitted and executed while that many waited.
"""

import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio

from h2kbus.cli.bench.fleet import NOOP, SLOTS, START_SECONDS, STAY, Fleet, noop_job, running_fleet
from h2kbus.cli.bench.pipeline import POLL_SECONDS, Cost, waiting
from subjects.states import State

SHALLOW: Final = 1_000
DEEP: Final = 30_000
MEASURED: Final = 4_000
MEASURED_SHARE: Final = 50
"""Of a deep queue a fiftieth is measured, where that is more: with much in its memory, a server collects
garbage every few ten thousand jobs, which a short measurement has whole or not at all."""
ROUNDS: Final = 3
"""Measurements at each depth, one after the other. The deep queue has the shallow one before and after it."""
LOAD_SECONDS: Final = 3600.0


async def measure(jobs: int | None = None) -> dict[str, Any]:
    """Jobs per second with `jobs` queued over those with a thousand: before, deep, after."""
    deep = jobs or DEEP
    shallow = min(SHALLOW, deep)
    before, _ = await _at(shallow)
    costs, weighed = await _at(deep)
    after, _ = await _at(shallow)
    rate, cpu_ms = _middle(costs)
    beside, cpu_ms_beside = _middle([*before, *after])
    return {
        "queued": deep,
        "jobs_per_s": round(rate),
        f"jobs_per_s_with_{shallow}": round(beside),
        "before_and_after": f"{_middle(before)[0]:.0f}, {_middle(after)[0]:.0f}",
        "ratio": round(rate / beside, 3),
        "wanted_ratio": 0.9,
        "cpu_ms_per_job": round(cpu_ms, 2),
        # A few jobs take less processor time than the kernel counts, which is ten milliseconds.
        "cpu_ratio": round(cpu_ms / cpu_ms_beside, 3) if cpu_ms_beside else None,
        "memory": weighed,
    }


def _middle(costs: list[Cost]) -> tuple[float, float]:
    """Jobs a second, and processor time of a job in milliseconds: the medians."""
    return statistics.median(each.rate for each in costs), statistics.median(each.cpu_ms for each in costs)


async def _at(depth: int) -> tuple[list[Cost], dict[str, Any]]:
    """What jobs cost at this depth, and each process's memory: empty, with all queued, and at the end."""
    measured = max(min(MEASURED, 10 * depth), depth // MEASURED_SHARE)
    async with running_fleet(sync_always=False, operations=(NOOP, STAY)) as fleet:
        empty = fleet.memory_mb()
        async with _occupied(fleet):
            await _load(fleet, depth)
            queued = fleet.memory_mb()
            # What filling the queue has left to be written to the disk is no part of what is measured.
            await anyio.to_thread.run_sync(os.sync)
        await _kept_at(fleet, depth, measured // 10)
        costs = [await _kept_at(fleet, depth, measured) for _ in range(ROUNDS)]
        last = fleet.memory_mb()
    weighed = {
        name: {"empty_mb": empty[name], "all_queued_mb": queued[name], "at_the_end_mb": last[name]}
        for name in empty
    }
    return costs, weighed


@contextlib.asynccontextmanager
async def _occupied(fleet: Fleet) -> AsyncIterator[None]:
    """Have all of the worker's slots taken, so that the queue can be filled.

    A cordoned worker would not do: after a lease the records of jobs that wait say that nobody takes them,
    and a claim of a record that has changed since its lane was told has to look it up.
    """
    staying = [await fleet.bus.submit(noop_job("stay")) for _ in range(SLOTS)]
    with anyio.fail_after(START_SECONDS):
        for job_id in staying:
            async for event in fleet.bus.watch(job_id):
                if event.state is State.RUNNING:
                    break
    yield
    with anyio.fail_after(START_SECONDS):
        for job_id in staying:
            await fleet.bus.cancel(job_id)
        async for _ in fleet.bus.results(staying):
            pass


async def _load(fleet: Fleet, jobs: int) -> None:
    """Until all of them are in their lane, so that the scheduler has nothing left to do for them."""
    await _submit(fleet, jobs)
    commands = f"STREAM.INFO.{fleet.bus.topology.commands_stream}"
    with anyio.fail_after(LOAD_SECONDS):
        while (await fleet.bus.connection.api(commands))["state"]["messages"]:  # noqa: ASYNC110
            await anyio.sleep(10 * POLL_SECONDS)


async def _kept_at(fleet: Fleet, depth: int, jobs: int) -> Cost:
    """What it costs until so many jobs have ended, with as many submitted as have ended so far."""
    used, began = fleet.cpu_seconds(), time.perf_counter()
    ended = 0
    while ended < jobs:
        missing = min(depth - await waiting(fleet), jobs - ended)
        if missing > 0:
            await _submit(fleet, missing)
            ended += missing
        await anyio.sleep(POLL_SECONDS)
    return Cost(jobs, time.perf_counter() - began, fleet.cpu_seconds() - used)


async def _submit(fleet: Fleet, jobs: int) -> None:
    async for _ in fleet.bus.submit_many(noop_job() for _ in range(jobs)):
        pass
