"""Jobs that would be better off with a capability go where it is, and wait for nobody."""

import anyio
import pytest

from h2kbus.client import Bus
from scheduler.fleet import FleetView
from subjects.codec import encode
from subjects.fit import Demand
from subjects.fleet import WorkerCapabilities
from tests.conftest import Fleet, rehearsal, worker_profile
from tests.scheduler.conftest import accepted

PLAIN = ("qemu-img",)
ABLE = ("qemu-img", "guestfs")


async def lane_of_inspection(bus: Bus, *alive: WorkerCapabilities) -> str:
    """The lane that an inspection gets while these workers are alive."""
    for each in alive:
        await bus.connection.publish(bus.topology.worker_subject(each.worker_id), encode(each))
    return (await accepted(bus, rehearsal(operation="inspect"))).lane


@pytest.mark.parametrize(
    ("alive", "lane"),
    [
        ([], "qemu-img"),
        ([worker_profile("w1", tokens=PLAIN)], "qemu-img"),
        ([worker_profile("w1", tokens=PLAIN), worker_profile("w2", tokens=ABLE)], "guestfs+qemu-img"),
        ([worker_profile("w1", tokens=ABLE, pool="elsewhere")], "qemu-img"),
        ([worker_profile("w1", tokens=ABLE, draining=True)], "qemu-img"),
        ([worker_profile("w1", tokens=PLAIN), worker_profile("w2", tokens=("guestfs",))], "qemu-img"),
    ],
    ids=["nobody", "plain", "able", "another pool", "draining", "no one has both"],
)
async def test_inspection_goes_to_the_able_while_one_of_them_takes_jobs(
    scheduling: Fleet, bus: Bus, alive: list[WorkerCapabilities], lane: str
) -> None:
    assert await lane_of_inspection(bus, *alive) == lane


async def test_hundreds_that_find_the_view_too_old_take_one_look(bus: Bus, scheduling: Fleet) -> None:
    view = FleetView(bus.connection, bus.topology)
    looks: list[str] = []
    stream = bus.topology.bucket_stream(bus.topology.workers_bucket)
    await bus.connection.listen(f"$JS.API.DIRECT.GET.{stream}", lambda message: looks.append(message.subject))
    demand = Demand.of(rehearsal(), frozenset({"nbd"}))
    async with anyio.create_task_group() as group:
        for _ in range(300):
            group.start_soon(view.unserved, demand)
    assert len(looks) == 1
