"""A worker asks for no more than it can start: whatever else its pulls bring goes back at once."""

from collections.abc import AsyncIterator

import anyio
import pytest

from h2kbus.client import Bus
from h2kbus.connection import Connection
from h2kbus.errors import BusUnreachable
from h2kbus.pull import Delivery
from subjects.fleet import LaneAnnouncement
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal
from workers.pull import LanePuller

pytestmark = pytest.mark.anyio

LANE = LaneAnnouncement(pool="default", lane="any", priority=5, consumer="lane")


class Pulled:
    """A puller whose deliveries the test makes, and what it answers to them."""

    def __init__(self, connection: Connection, topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
        self.accepted: list[str] = []
        self.given_back: list[str] = []
        self.room = 1
        self.puller = LanePuller(connection, topology, self._accept)
        self.puller.serve((LANE,), frozenset())
        self._connection = connection
        monkeypatch.setattr(connection, "publish_unconfirmed", self._publish)

    def bring(self, name: str, consumer: str = "lane") -> None:
        self.puller._on_delivery(Delivery(self._connection, name, b"", name, consumer, 1))

    def _accept(self, delivery: Delivery) -> bool:
        if len(self.accepted) >= self.room:
            return False
        self.accepted.append(delivery.subject)
        return True

    async def _publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        assert payload.startswith(b"-NAK")
        if not self.given_back:
            # Nothing real can be made to arrive in that very moment.
            self.bring("late")
        self.given_back.append(subject)


@pytest.fixture
def pulled(connection: Connection, topology: Topology, monkeypatch: pytest.MonkeyPatch) -> Pulled:
    return Pulled(connection, topology, monkeypatch)


@pytest.fixture
async def giving_back(pulled: Pulled) -> AsyncIterator[Pulled]:
    async with anyio.create_task_group() as group:
        group.start_soon(pulled.puller.give_back)
        yield pulled
        group.cancel_scope.cancel()


async def until_given_back(pulled: Pulled, count: int) -> list[str]:
    with anyio.fail_after(5):
        while len(pulled.given_back) < count:
            await anyio.sleep(0.001)
    return pulled.given_back


async def test_what_is_not_taken_goes_back_and_so_does_what_arrives_meanwhile(giving_back: Pulled) -> None:
    for name in ("a", "b", "c"):
        giving_back.bring(name)
    assert await until_given_back(giving_back, 3) == ["b", "c", "late"]
    assert giving_back.accepted == ["a"]


async def test_bus_that_cannot_be_told_ends_no_worker(
    giving_back: Pulled, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([BusUnreachable("not now")])
    told = giving_back._publish

    async def publish(subject: str, payload: bytes, reply: str = "") -> None:
        for error in answers:
            raise error
        await told(subject, payload, reply)

    monkeypatch.setattr(giving_back._connection, "publish_unconfirmed", publish)
    for name in ("a", "b", "c"):
        giving_back.bring(name)
    assert "c" in await until_given_back(giving_back, 1)


async def test_job_of_a_lane_that_is_not_served_any_more_goes_back(giving_back: Pulled) -> None:
    giving_back.bring("a", consumer="another")
    assert "a" in await until_given_back(giving_back, 1)


async def test_job_that_a_long_pull_brings_to_a_busy_worker_goes_to_an_idle_one(
    fleet: Fleet, bus: Bus
) -> None:
    await fleet.scheduler()
    await fleet.worker("busy", slots=1)
    for priority in (3, 7):
        await bus.result(await bus.submit(rehearsal(policy={"priority": priority})), check=True)
    # It waits on both lanes when it gets a job that keeps it busy.
    await anyio.sleep(0.5)
    await bus.submit(rehearsal(seconds=60, policy={"priority": 3}, job_id="long"))
    async for event in bus.watch("long"):
        if event.worker_id == "busy":
            break
    await fleet.worker("idle", slots=1)
    with anyio.fail_after(10):
        for _ in range(4):
            job_id = await bus.submit(rehearsal(policy={"priority": 7}))
            record = await bus.result(job_id, check=True)
            assert record.worker_id == "idle"


@pytest.mark.slow
async def test_idle_worker_leaves_the_server_alone(bus: Bus, running: Fleet) -> None:
    await bus.result(await bus.submit(rehearsal()))
    await anyio.sleep(0.3)
    stats = running.connections["worker-1"].nats.stats
    before = stats["out_msgs"]
    await anyio.sleep(1)
    assert stats["out_msgs"] - before < 10
