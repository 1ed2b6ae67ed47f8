"""Commands as any NATS client sends them, and what the scheduler made of them."""

import datetime as dt
from typing import Any

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.store import Entry
from subjects.codec import decode, encode
from subjects.lifecycle import claimed, publishing
from subjects.operations import plugin_token
from subjects.record import DeadLetter, JobRecord
from subjects.spec import JobSpec
from tests.conftest import Fleet, rehearsal, worker_profile

TOKEN = plugin_token("rehearse")


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


async def lives(bus: Bus, worker_id: str, **profile: Any) -> None:
    """A heartbeat of a worker that takes nothing."""
    worker = worker_profile(worker_id, tokens=(TOKEN,), **profile)
    await bus.connection.publish(bus.topology.worker_subject(worker_id), encode(worker))


async def held_by_a_dead_worker(
    bus: Bus, spec: JobSpec, lease_seconds: float, *, published: bool = False
) -> Entry:
    """A job that was claimed by a worker of which nothing is heard any more, its message taken along."""
    await accepted(bus, spec)
    entry = await bus.store.get(spec.job_id or "")
    record = claimed(
        entry.record,
        worker_id="dead",
        revision=entry.revision,
        now=dt.datetime.now(dt.UTC),
        lease_seconds=lease_seconds,
    )
    return await bus.store.swap(publishing(record) if published else record, entry.revision)
