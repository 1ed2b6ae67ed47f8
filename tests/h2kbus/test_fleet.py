"""How the fleet looks to a client: workers, lanes and how full they are."""

import anyio
import pytest

from h2kbus.client import Bus
from h2kbus.fleet import LaneLoad
from tests.conftest import Fleet, rehearsal

pytestmark = pytest.mark.anyio


async def loads(bus: Bus, expected: tuple[int, int, int]) -> LaneLoad:
    """The only lane, once it has so many jobs that wait, jobs that run, and workers that wait."""
    with anyio.fail_after(10):
        while True:
            found = await bus.lane_loads()
            if len(found) == 1 and (found[0].waiting, found[0].running, found[0].parked) == expected:
                return found[0]
            await anyio.sleep(0.02)


async def test_lane_tells_how_many_jobs_wait_and_how_old_the_oldest_is(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    for _ in range(3):
        await bus.verdict(await bus.submit(rehearsal()))
    first = await loads(bus, (3, 0, 0))
    await anyio.sleep(0.3)
    second = await loads(bus, (3, 0, 0))
    assert first.oldest_seconds is not None
    assert second.oldest_seconds is not None
    assert second.oldest_seconds >= first.oldest_seconds + 0.3
    assert (second.pool, second.lane, second.priority) == ("default", "op-rehearse", 5)


async def test_lane_tells_how_many_jobs_run_and_how_many_workers_wait(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    await fleet.worker(slots=1)
    await fleet.worker("worker-2", slots=1)
    job_id = await bus.submit(rehearsal(seconds=3))
    await loads(bus, (0, 1, 1))
    await bus.cancel(job_id)
    idle = await loads(bus, (0, 0, 2))
    assert idle.oldest_seconds is None


async def test_bus_without_lanes_has_none(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    assert await bus.lane_loads() == []


async def test_heartbeat_carries_the_time_of_the_server(bus: Bus, running: Fleet) -> None:
    [worker] = await bus.workers()
    assert 0 <= (await bus.store.server_time() - worker.last_heartbeat).total_seconds() < 60
