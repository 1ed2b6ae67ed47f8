"""A worker that knows the contract and not our code: Node.js beside a Python scheduler."""

import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from h2kbus.client import Bus
from subjects.record import JobRecord
from subjects.states import State
from tests.conftest import Fleet, rehearsal

HERE = Path(__file__).parent
LEASE_SECONDS = 3.0

pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def foreign_worker(fleet: Fleet, worker_id: str = "node-1") -> AsyncIterator["subprocess.Popen[str]"]:
    argv = ["node", str(HERE / "worker.mjs"), fleet.settings.url, fleet.settings.root, worker_id]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.readline) == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def until_state(bus: Bus, job_id: str, *states: State) -> JobRecord:
    """The record once it is in one of these states."""
    while True:
        entry = await bus.store.find(job_id)
        if entry is not None and entry.record.state in states:
            return entry.record
        await anyio.sleep(0.05)


@pytest.fixture
async def scheduled(fleet: Fleet) -> Fleet:
    await fleet.scheduler(lease_seconds=LEASE_SECONDS)
    return fleet


async def test_it_completes_a_job(scheduled: Fleet, bus: Bus) -> None:
    async with foreign_worker(scheduled):
        record = await bus.result(await bus.submit(rehearsal(seconds=2)))
    assert (record.state, record.worker_id) == (State.COMPLETED, "node-1")
    assert record.result is not None
    assert record.result.summary == {"by": "node"}


async def test_its_lane_is_empty_once_a_job_is_done(scheduled: Fleet, bus: Bus) -> None:
    async with foreign_worker(scheduled):
        await bus.result(await bus.submit(rehearsal()))
        while any(lane.waiting or lane.running for lane in await bus.lane_loads()):
            await anyio.sleep(0.05)


async def test_its_events_are_ordered_and_end_with_the_terminal_state(scheduled: Fleet, bus: Bus) -> None:
    async with foreign_worker(scheduled):
        events = [event async for event in bus.watch(await bus.submit(rehearsal(seconds=3)))]
    assert [each.seq for each in events] == sorted({each.seq for each in events})
    assert events[-1].state is State.COMPLETED
    assert any(0 < each.progress_percent < 100 for each in events)


async def test_it_keeps_a_job_for_longer_than_a_lease(scheduled: Fleet, bus: Bus) -> None:
    async with foreign_worker(scheduled):
        record = await bus.result(await bus.submit(rehearsal(seconds=LEASE_SECONDS * 2)))
    assert (record.state, record.attempt) == (State.COMPLETED, 1)


async def test_it_is_cancelled(scheduled: Fleet, bus: Bus) -> None:
    async with foreign_worker(scheduled):
        job_id = await bus.submit(rehearsal(seconds=50))
        await until_state(bus, job_id, State.RUNNING, State.PROGRESSING)
        await bus.cancel(job_id)
        record = await bus.result(job_id)
    assert record.state is State.CANCELLED


async def test_its_failure_is_retried(scheduled: Fleet, bus: Bus) -> None:
    async with foreign_worker(scheduled):
        job = rehearsal(fail="TOOL_FAILED", policy={"retry_count": 1})
        record = await bus.result(await bus.submit(job))
    assert (record.state, record.attempt) == (State.FAILED, 2)
    assert [error.code for error in record.errors] == ["TOOL_FAILED", "TOOL_FAILED"]


async def test_its_death_gives_the_job_to_a_python_worker(scheduled: Fleet, bus: Bus) -> None:
    async with foreign_worker(scheduled) as process:
        job_id = await bus.submit(rehearsal(seconds=4, policy={"retry_count": 1}))
        await until_state(bus, job_id, State.RUNNING, State.PROGRESSING)
        process.kill()
        process.wait()
        await scheduled.worker("python-1")
        record = await bus.result(job_id)
    assert (record.state, record.worker_id, record.attempt) == (State.COMPLETED, "python-1", 2)
    assert record.errors[0].code == "WORKER_LOST"


async def test_drained_it_hands_its_job_to_a_python_worker(scheduled: Fleet, bus: Bus) -> None:
    async with foreign_worker(scheduled) as process:
        job_id = await bus.submit(rehearsal(seconds=4))
        await until_state(bus, job_id, State.RUNNING, State.PROGRESSING)
        process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(process.wait) == 0
        assert await bus.workers() == []
        await scheduled.worker("python-1")
        record = await bus.result(job_id)
    assert (record.state, record.worker_id, record.attempt) == (State.COMPLETED, "python-1", 1)


async def test_a_frozen_one_writes_nothing_of_a_job_that_others_have_by_then(
    scheduled: Fleet, bus: Bus
) -> None:
    async with foreign_worker(scheduled) as process:
        job_id = await bus.submit(rehearsal(seconds=8, policy={"retry_count": 1}))
        await until_state(bus, job_id, State.RUNNING, State.PROGRESSING)
        process.send_signal(signal.SIGSTOP)
        await scheduled.worker("python-1")
        while (await bus.status(job_id)).worker_id != "python-1":
            await anyio.sleep(0.05)
        process.send_signal(signal.SIGCONT)
        record = await bus.result(job_id)
    assert (record.state, record.worker_id, record.attempt) == (State.COMPLETED, "python-1", 2)
    assert [each.by for each in record.transitions if each.to is State.COMPLETED] == ["python-1"]
