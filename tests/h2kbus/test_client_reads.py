"""What the Python client reads of many jobs, workers and lanes."""

import datetime as dt

import anyio

import h2kbus
from h2kbus.client import Bus
from h2kbus.settings import ConnectionSettings
from subjects.states import State
from tests.conftest import Fleet, rehearsal


async def finish(bus: Bus, **job: object) -> str:
    job_id = await bus.submit(rehearsal(**job))
    await bus.verdict(job_id)
    await bus.result(job_id)
    return job_id


async def test_results_of_many_come_each_as_it_ends(bus: Bus, running: Fleet) -> None:
    slow = await bus.submit(rehearsal(seconds=0.8))
    fast = await bus.submit(rehearsal())
    assert [record.job_id async for record in bus.results([slow, fast])] == [fast, slow]


async def test_two_clients_see_the_same_story(bus: Bus, running: Fleet, settings: ConnectionSettings) -> None:
    stories: list[list[int]] = []

    async def follow(watcher: Bus, job_id: str) -> None:
        stories.append([event.seq async for event in watcher.watch(job_id)])

    async with h2kbus.connect(settings=settings) as other, anyio.create_task_group() as group:
        job_id = await bus.submit(rehearsal(seconds=0.5))
        group.start_soon(follow, bus, job_id)
        group.start_soon(follow, other, job_id)
    assert stories[0] == stories[1]


async def test_jobs_are_listed_by_state(bus: Bus, running: Fleet) -> None:
    failed = await finish(bus, fail="IMAGE_UNSAFE")
    completed = await finish(bus)
    assert [record.job_id async for record in bus.jobs()] == [failed, completed]
    assert [record.job_id async for record in bus.jobs(state=State.FAILED)] == [failed]
    assert [record.job_id async for record in bus.jobs(state=State.QUEUED)] == []


async def test_jobs_are_listed_from_a_moment_on(bus: Bus, running: Fleet) -> None:
    await finish(bus)
    moment = dt.datetime.now(dt.UTC)
    later = await finish(bus)
    assert [record.job_id async for record in bus.jobs(since=moment)] == [later]


async def test_moment_may_be_in_any_time_zone(bus: Bus, running: Fleet) -> None:
    await finish(bus)
    moment = dt.datetime.now(dt.timezone(dt.timedelta(hours=9)))
    later = await finish(bus)
    assert [record.job_id async for record in bus.jobs(since=moment)] == [later]


async def test_workers_and_lanes_are_listed(bus: Bus, running: Fleet) -> None:
    await finish(bus, policy={"priority": 3})
    assert [worker.worker_id for worker in await bus.workers()] == ["worker-1"]
    assert [(lane.pool, lane.lane, lane.priority) for lane in await bus.lanes()] == [
        ("default", "op-rehearse", 3)
    ]
