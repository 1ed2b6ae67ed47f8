"""What operators tell a worker: to take no new jobs, to take them again, to end."""

from collections.abc import Callable

import anyio
import pytest

from h2kbus.client import Bus
from h2kbus.errors import WorkerNotFound
from subjects.fleet import WorkerCapabilities
from subjects.states import State
from tests.conftest import Fleet, rehearsal

pytestmark = pytest.mark.anyio


async def seen(bus: Bus, test: Callable[[list[WorkerCapabilities]], bool]) -> None:
    with anyio.fail_after(10):
        while True:
            if test(await bus.workers()):
                return
            await anyio.sleep(0.02)


async def test_cordoned_worker_takes_no_job_until_it_is_uncordoned(bus: Bus, running: Fleet) -> None:
    await bus.order("worker-1", "cordon")
    await seen(bus, lambda workers: workers[0].cordoned)
    job_id = await bus.submit(rehearsal())
    await bus.verdict(job_id)
    await anyio.sleep(0.5)
    assert (await bus.status(job_id)).state is State.QUEUED
    await bus.order("worker-1", "uncordon")
    assert (await bus.result(job_id)).state is State.COMPLETED


async def test_job_that_runs_goes_on_when_its_worker_is_cordoned(bus: Bus, running: Fleet) -> None:
    job_id = await bus.submit(rehearsal(seconds=0.5))
    async for event in bus.watch(job_id):
        if event.state is State.RUNNING:
            break
    await bus.order("worker-1", "cordon")
    assert (await bus.result(job_id)).state is State.COMPLETED


async def test_jobs_go_to_another_worker_while_one_is_cordoned(bus: Bus, running: Fleet) -> None:
    await bus.order("worker-1", "cordon")
    await seen(bus, lambda workers: workers[0].cordoned)
    await running.worker("worker-2")
    for _ in range(4):
        assert (await bus.result(await bus.submit(rehearsal()))).worker_id == "worker-2"


async def test_worker_that_is_started_anew_under_a_cordoned_name_is_cordoned(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    drain = await fleet.worker()
    await bus.order("worker-1", "cordon")
    drain()
    await seen(bus, lambda workers: not workers)
    await fleet.worker()
    await seen(bus, lambda workers: bool(workers) and workers[0].cordoned)


async def test_worker_that_is_told_to_drain_ends_its_jobs_and_leaves(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    await fleet.worker(grace=10.0)
    job_id = await bus.submit(rehearsal(seconds=0.5))
    async for event in bus.watch(job_id):
        if event.state is State.RUNNING:
            break
    await bus.order("worker-1", "drain")
    record = await bus.result(job_id)
    assert (record.state, record.attempt) == (State.COMPLETED, 1)
    await seen(bus, lambda workers: not workers)


async def test_drain_does_not_concern_a_worker_that_takes_the_name_later(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    await fleet.worker()
    await bus.order("worker-1", "drain")
    await seen(bus, lambda workers: not workers)
    await fleet.worker()
    assert (await bus.result(await bus.submit(rehearsal()))).worker_id == "worker-1"


async def test_order_to_a_worker_that_does_not_live_is_refused(bus: Bus, running: Fleet) -> None:
    with pytest.raises(WorkerNotFound, match="no live worker nobody"):
        await bus.order("nobody", "drain")
