"""Word of a refusal reaches its submitter, also where it could not be left at first."""

import contextlib

import anyio
import pytest

from h2kbus.client import Bus
from h2kbus.errors import BusError
from h2kbus.provision import provision
from h2kbus.quotas import read_refusal
from scheduler import gate as module
from scheduler.gate import Gate

pytestmark = pytest.mark.anyio


@pytest.fixture
async def gate(bus: Bus) -> Gate:
    """On a bus that takes no word of a refusal yet."""
    await provision(bus.connection, bus.topology)
    await bus.connection.api(f"STREAM.DELETE.{bus.topology.bucket_stream(bus.topology.locks_bucket)}")
    return Gate(bus.connection, bus.topology, "scheduler-1")


async def refused(bus: Bus) -> int | None:
    """How many refusals the submitter has been told of."""
    await provision(bus.connection, bus.topology)
    refusal = await read_refusal(bus.connection, bus.topology, "mallory")
    return refusal.refused if refusal else None


async def test_command_is_not_done_with_while_nobody_is_told_of_it(gate: Gate) -> None:
    """Of those that are refused at once one is told, for all: no other is gone before that has come about."""
    failed = []

    async def tell() -> None:
        try:
            await gate.tell("mallory", "too many")
        except BusError as error:
            failed.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(tell)
    assert len(failed) == 5


async def test_those_that_are_refused_at_once_are_told_of_once(bus: Bus, gate: Gate) -> None:
    await provision(bus.connection, bus.topology)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(gate.tell, "mallory", "too many")
    assert await refused(bus) == 1


async def test_refusals_are_forgotten_after_a_rest_whether_told_of_or_not(
    bus: Bus, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RATE_SECONDS", 0.0)
    with contextlib.suppress(BusError):
        await gate.tell("mallory", "too many")
    await gate.refresh()
    await provision(bus.connection, bus.topology)
    await gate.tell("mallory", "too many")
    assert await refused(bus) == 1
