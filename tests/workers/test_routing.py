"""Many jobs and many kinds of workers: each job runs where it can, and none waits beside an idle worker."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from subjects.fit import Demand, lacks
from subjects.fleet import WorkerCapabilities
from subjects.operations import plugin_token
from subjects.record import JobRecord
from subjects.spec import CapabilityRequirements, JobSpec
from subjects.states import State
from tests.conftest import Fleet, rehearsal

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

REHEARSE: Final = plugin_token("rehearse")
SEED: Final = 5
PROFILES: Final[dict[str, tuple[tuple[str, ...], float, int]]] = {
    "plain-1": ((), 8, 2),
    "plain-2": ((), 8, 2),
    "plain-large": ((), 64, 1),
    "nbd": (("nbd",), 8, 2),
    "lvm": (("nbd", "lvm"), 16, 2),
    "mount-large": (("nbd", "mount"), 64, 1),
    "selinux": (("selinux-tools",), 16, 2),
    "everything": (("nbd", "lvm", "mount", "selinux-tools"), 128, 1),
}
"""For each worker: what it has beyond the operation's own token, its memory in GB, its slots."""
ASKED: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"needs_nbd": True},
    {"needs_nbd": True, "needs_lvm": True},
    {"needs_mount": True},
    {"needs_selinux_tools": True},
    {"min_memory_gb": 32},
    {"needs_nbd": True, "min_memory_gb": 32},
    {"needs_mount": True, "needs_lvm": True, "min_memory_gb": 100},
)


def jobs(count: int, dice: random.Random, seconds: float) -> Iterator[JobSpec]:
    """Mixed jobs of mixed priorities; `seconds` is the longest that one takes."""
    for number in range(count):
        spec = rehearsal(job_id=f"j{number}", seconds=dice.uniform(0, seconds))
        asked = msgspec.convert(dice.choice(ASKED), CapabilityRequirements)
        policy = msgspec.structs.replace(spec.execution_policy, priority=dice.choice((3, 5)))
        yield msgspec.structs.replace(spec, capability_requirements=asked, execution_policy=policy)


@pytest.fixture
async def mixed(fleet: Fleet) -> Fleet:
    await fleet.scheduler()
    for name, (tokens, memory_gb, slots) in PROFILES.items():
        await fleet.worker(name, tokens=(REHEARSE, *tokens), memory_gb=memory_gb, slots=slots)
    return fleet


def stranded(records: Sequence[JobRecord], workers: Sequence[WorkerCapabilities]) -> list[tuple[str, str]]:
    """Jobs that wait although a worker that can run them has a free slot, with that worker."""
    busy = {each.worker_id: 0 for each in workers}
    for record in records:
        if record.state.leased and record.worker_id:
            busy[record.worker_id] += 1
    idle = [each for each in workers if busy[each.worker_id] < each.max_concurrent_jobs]
    waiting = [record for record in records if record.state is State.QUEUED]
    return [
        (record.job_id, worker.worker_id)
        for record in waiting
        for worker in idle
        if not lacks(worker, Demand.of_record(record))
    ]


async def test_thousand_mixed_jobs_all_run_where_they_can(bus: Bus, mixed: Fleet) -> None:
    ids = [each async for each in bus.submit_many(jobs(1000, random.Random(SEED), 0.02))]
    workers = {each.worker_id: each for each in await bus.workers()}
    with anyio.fail_after(240):
        records = [record async for record in bus.results(ids)]
    assert len(records) == 1000
    assert {record.state for record in records} == {State.COMPLETED}
    assert {record.attempt for record in records} == {1}, "a job that is handed on loses no attempt"
    unfit = [each.job_id for each in records if lacks(workers[each.worker_id or ""], Demand.of_record(each))]
    assert unfit == []


async def test_no_job_waits_while_an_idle_worker_can_run_it(bus: Bus, mixed: Fleet) -> None:
    """Jobs that take their time fill the fleet; whenever some end, the fleet fills up again."""
    dice = random.Random(SEED)
    lasting = [each async for each in bus.submit_many(_lasting(200, dice))]
    workers = await bus.workers()
    for _ in range(8):
        records = await _until_nobody_is_stranded(bus, lasting, workers)
        running = [record.job_id for record in records if record.state.leased]
        assert len(running) == sum(slots for _, _, slots in PROFILES.values())
        for job_id in dice.sample(running, 5):
            await bus.cancel(job_id)
            await bus.result(job_id)


def _lasting(count: int, dice: random.Random) -> Iterator[JobSpec]:
    for spec in jobs(count, dice, 0.0):
        yield msgspec.structs.replace(spec, job_id=f"lasting-{spec.job_id}", parameters={"seconds": 60})


async def _until_nobody_is_stranded(
    bus: Bus, ids: list[str], workers: list[WorkerCapabilities]
) -> list[JobRecord]:
    with anyio.move_on_after(30):
        while True:
            entries = await bus.store.find_many(ids)
            records = [entry.record for entry in entries if entry is not None]
            left = stranded(records, workers)
            if len(records) == len(ids) and not left:
                return records
            await anyio.sleep(0.1)
    pytest.fail(f"these wait beside workers that could run them: {left}")
