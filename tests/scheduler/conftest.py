"""Commands as any NATS client sends them, and what the scheduler made of them."""

from typing import Any

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from subjects.codec import decode, encode
from subjects.record import DeadLetter, JobRecord
from subjects.spec import JobSpec
from tests.conftest import Fleet, rehearsal


@pytest.fixture
async def scheduling(fleet: Fleet) -> Fleet:
    await fleet.scheduler()
    return fleet


async def send(bus: Bus, verb: str, job_id: str, body: bytes = b"", *, submitter: str = "tester") -> None:
    await bus.connection.publish(f"{bus.grammar.root}.commands.{submitter}.{verb}.{job_id}", body)


async def letters(bus: Bus, count: int = 1, *, seconds: float = 5) -> list[tuple[str, DeadLetter]]:
    """The dead letters, with the subject that each lies under, once there are so many."""
    stream, subject = bus.topology.dead_stream, f"{bus.grammar.root}.dead.>"
    with anyio.fail_after(seconds):
        while True:
            stored = [each async for each in bus.connection.read(stream, subject)]
            if len(stored) >= count:
                prefix = f"{bus.grammar.root}.dead."
                return [(each.subject.removeprefix(prefix), decode(DeadLetter, each.data)) for each in stored]
            await anyio.sleep(0.01)


async def count(bus: Bus, stream: str) -> int:
    found: int = (await bus.connection.api(f"STREAM.INFO.{stream}"))["state"]["messages"]
    return found


async def until_read(bus: Bus) -> None:
    with anyio.fail_after(10):
        while await count(bus, bus.topology.commands_stream):
            await anyio.sleep(0.01)


async def accepted(bus: Bus, spec: JobSpec) -> JobRecord:
    entry = await bus.verdict(await bus.submit(spec))
    assert entry is not None
    return entry.record


def changed(**fields: Any) -> bytes:
    """A valid job with these fields instead, as a client would send it."""
    return encode({**msgspec.to_builtins(rehearsal()), **fields})
