"""Lanes: a consumer for each combination in use, announced, and never too many."""

import contextlib

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.connection import Connection
from h2kbus.errors import InvalidMessage
from h2kbus.fleet import read_lanes
from h2kbus.provision import provision
from scheduler import lanes
from scheduler.lanes import LaneRegistry
from subjects.fleet import LaneAnnouncement
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal


@pytest.fixture
async def registry(connection: Connection, topology: Topology) -> LaneRegistry:
    await provision(connection, topology)
    return LaneRegistry(connection, topology)


async def consumers(connection: Connection, topology: Topology) -> list[str]:
    found: list[str] = (await connection.api(f"CONSUMER.NAMES.{topology.jobs_stream}"))["consumers"]
    return sorted(found)


async def test_lane_gets_the_consumer_that_is_declared(
    registry: LaneRegistry, connection: Connection, topology: Topology
) -> None:
    await registry.ensure("default", "nbd+qemu-img", 3)
    wanted = topology.lane_consumer("default", "nbd+qemu-img", 3)
    info = await connection.api(f"CONSUMER.INFO.{topology.jobs_stream}.{wanted.durable_name}")
    declared = msgspec.json.decode(msgspec.json.encode(wanted))
    assert {field: info["config"].get(field) for field in declared} == declared


async def test_lane_is_announced(registry: LaneRegistry, connection: Connection, topology: Topology) -> None:
    await registry.ensure("default", "any", 3)
    name = topology.lane_consumer("default", "any", 3).durable_name
    assert await read_lanes(connection, topology) == [
        LaneAnnouncement(pool="default", lane="any", priority=3, consumer=name)
    ]


async def test_most_urgent_lanes_are_listed_first(
    registry: LaneRegistry, connection: Connection, topology: Topology
) -> None:
    for priority in (7, 10, 1):
        await registry.ensure("default", "any", priority)
    assert [lane.priority for lane in await read_lanes(connection, topology)] == [1, 7, 10]


async def test_lane_is_made_once(registry: LaneRegistry, connection: Connection, topology: Topology) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(registry.ensure, "default", "any", 5)
    stream = topology.bucket_stream(topology.lanes_bucket)
    state = (await connection.api(f"STREAM.INFO.{stream}"))["state"]
    assert state["last_seq"] == 1


async def test_two_registries_agree(
    registry: LaneRegistry, connection: Connection, topology: Topology
) -> None:
    other = LaneRegistry(connection, topology)
    async with anyio.create_task_group() as group:
        for each in (registry, other):
            group.start_soon(each.ensure, "default", "any", 5)
    assert len(await consumers(connection, topology)) == 1


async def test_deleted_consumer_is_mended_at_the_next_start(
    registry: LaneRegistry, connection: Connection, topology: Topology
) -> None:
    await registry.ensure("default", "any", 5)
    [name] = await consumers(connection, topology)
    await connection.api(f"CONSUMER.DELETE.{topology.jobs_stream}.{name}")
    await LaneRegistry(connection, topology).load()
    assert await consumers(connection, topology) == [name]


async def test_lane_above_the_ceiling_is_refused(
    registry: LaneRegistry, connection: Connection, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_LANES", 2)
    await registry.ensure("default", "any", 1)
    await registry.ensure("default", "any", 2)
    with pytest.raises(InvalidMessage, match="use fewer pools or priorities") as caught:
        await registry.ensure("default", "any", 3)
    assert caught.value.path == "$.pool"
    assert len(await consumers(connection, topology)) == 2


async def test_lane_that_exists_is_not_refused_at_the_ceiling(
    registry: LaneRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_LANES", 1)
    await registry.ensure("default", "any", 1)
    await registry.ensure("default", "any", 1)


async def test_ceiling_counts_the_lanes_of_all_schedulers(
    registry: LaneRegistry, connection: Connection, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_LANES", 2)
    other = LaneRegistry(connection, topology)
    await registry.ensure("default", "any", 1)
    await other.ensure("default", "any", 2)
    with pytest.raises(InvalidMessage):
        await registry.ensure("default", "any", 3)


async def test_ceiling_holds_when_many_lanes_come_at_once(
    registry: LaneRegistry, connection: Connection, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_LANES", 2)

    async def ensure(priority: int) -> None:
        with contextlib.suppress(InvalidMessage):
            await registry.ensure("default", "any", priority)

    async with anyio.create_task_group() as group:
        for priority in range(1, 6):
            group.start_soon(ensure, priority)
    assert len(await consumers(connection, topology)) == 2


async def test_existing_lanes_can_be_taken_over_at_the_ceiling(
    registry: LaneRegistry, connection: Connection, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler must start where the ceiling was lower when other schedulers made their lanes."""
    await registry.ensure("default", "any", 1)
    await registry.ensure("default", "any", 2)
    monkeypatch.setattr(lanes, "MAX_LANES", 1)
    await LaneRegistry(connection, topology).load()


async def test_job_for_a_lane_too_many_fails_with_the_path(
    bus: Bus, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_LANES", 1)
    await fleet.scheduler()
    first = await bus.verdict(await bus.submit(rehearsal(policy={"priority": 1})))
    second = await bus.verdict(await bus.submit(rehearsal(policy={"priority": 2})))
    assert first is not None
    assert second is not None
    assert first.record.state is State.QUEUED
    assert second.record.state is State.FAILED
    assert second.record.result is not None
    assert second.record.result.error is not None
    assert second.record.result.error.details == {"path": "$.pool"}
