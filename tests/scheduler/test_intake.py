"""Commands in: each is carried out once, however often it comes, and a bad one ends where it can be seen."""

import datetime as dt
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.connection import Connection
from h2kbus.provision import provision
from h2kbus.pull import Delivery, PullInbox, PullRequest
from h2kbus.store import JobStore
from scheduler.admission import Admission
from scheduler.dispatch import Dispatch
from scheduler.fleet import FleetView
from scheduler.gate import Gate
from scheduler.intake import Intake
from scheduler.lanes import LaneRegistry
from scheduler.limits import Limits
from scheduler.locks import ImageLocks
from subjects.catalog import OperationCatalog
from subjects.codec import decode, encode
from subjects.commands import CancelCommand, RetryCommand
from subjects.spec import CapabilityRequirements, JobSpec
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal
from tests.scheduler.conftest import accepted, changed, count, letters, send, until_read

# A command that comes again


@pytest.fixture
async def redelivered(connection: Connection, topology: Topology) -> AsyncIterator[Callable[..., Any]]:
    """Pull the next command and have it handled so many times, as after a crash before its ack."""
    await provision(connection, topology)
    catalog = OperationCatalog()
    store = JobStore(connection, topology)
    fleet = FleetView(connection, topology)
    locks = ImageLocks(connection, topology, store, catalog)
    intake = Intake(
        Dispatch(connection, topology, store, "scheduler-1"),
        LaneRegistry(connection, topology),
        Admission(locks, Limits(connection, topology, store), fleet),
        fleet,
        catalog,
        Gate(connection, topology, "scheduler-1"),
    )
    deliveries: list[Delivery] = []
    inbox = PullInbox(connection, topology.commands_stream, deliveries.append)
    await inbox.open()

    async def handle(times: int) -> None:
        with anyio.fail_after(10):
            await (await inbox.send(topology.scheduler_consumer, PullRequest(1, expires=10**10))).wait()
        for _ in range(times):
            await intake.handle(deliveries[-1])

    yield handle
    await inbox.close()


def inspection(job_id: str, **changes: Any) -> JobSpec:
    return msgspec.structs.replace(rehearsal(operation="inspect", job_id=job_id), **changes)


async def test_redelivered_submit_queues_the_job_once(bus: Bus, redelivered: Callable[..., Any]) -> None:
    await bus.submit(inspection("j1"))
    await redelivered(1)
    first = await bus.store.get("j1")
    await bus.submit(inspection("j1"))
    await redelivered(3)
    assert await bus.store.get("j1") == first
    assert await count(bus, bus.topology.jobs_stream) == 1
    assert await count(bus, bus.topology.dead_stream) == 0


async def test_redelivered_submit_finishes_what_was_cut_off(
    bus: Bus, redelivered: Callable[..., Any]
) -> None:
    """The record was written, and the scheduler died before it put the job in its lane."""
    await bus.submit(inspection("j1"))
    await redelivered(1)
    await bus.connection.api(f"STREAM.PURGE.{bus.topology.jobs_stream}")
    await bus.connection.api(f"STREAM.PURGE.{bus.topology.progress_stream}")
    await bus.submit(inspection("j1"))
    await redelivered(1)
    assert await count(bus, bus.topology.jobs_stream) == 1
    assert await count(bus, bus.topology.progress_stream) == 1


async def test_redelivered_retry_makes_one_job(bus: Bus, redelivered: Callable[..., Any]) -> None:
    await send(bus, "submit", "parent", encode(inspection("parent", operation="unknown")))
    await redelivered(1)
    await send(bus, "submit", "ended", encode(inspection("ended")))
    await redelivered(1)
    await bus.cancel("ended")
    await redelivered(2)
    await bus.connection.api(f"STREAM.PURGE.{bus.topology.jobs_stream}")
    await send(bus, "retry", "child", encode(RetryCommand(parent="ended")))
    await redelivered(3)
    child = (await bus.store.get("child")).record
    assert (child.parent, child.state) == ("ended", State.QUEUED)
    assert await count(bus, bus.topology.jobs_stream) == 1


async def test_redelivered_cancel_leaves_the_first_word_standing(
    bus: Bus, redelivered: Callable[..., Any]
) -> None:
    await bus.submit(inspection("j1"))
    await redelivered(1)
    await bus.cancel("j1", "first")
    await redelivered(1)
    ended = await bus.store.get("j1")
    await send(bus, "cancel", "j1", encode(CancelCommand(reason="second")))
    await redelivered(2)
    assert await bus.store.get("j1") == ended


async def test_invalid_submit_that_comes_again_leaves_its_record(
    bus: Bus, redelivered: Callable[..., Any]
) -> None:
    await send(bus, "submit", "j1", b"{")
    await redelivered(1)
    refused = await bus.store.get("j1")
    await send(bus, "submit", "j1", b"{")
    await redelivered(2)
    assert await bus.store.get("j1") == refused


# The same id


async def test_same_job_under_its_id_changes_nothing(bus: Bus, scheduling: Fleet) -> None:
    first = await accepted(bus, rehearsal(job_id="same"))
    await bus.submit(rehearsal(job_id="same"))
    await until_read(bus)
    assert await bus.status("same") == first
    assert await count(bus, bus.topology.jobs_stream) == 1
    assert await count(bus, bus.topology.dead_stream) == 0


async def test_another_job_under_the_id_is_buried_and_the_first_untouched(
    bus: Bus, scheduling: Fleet
) -> None:
    first = await accepted(bus, rehearsal(job_id="taken"))
    await until_read(bus)
    other = rehearsal(job_id="taken", seconds=1)
    await bus.submit(other)
    [(subject, letter)] = await letters(bus)
    assert subject == "duplicate-id.taken"
    assert decode(JobSpec, letter.data).parameters == {"seconds": 1}
    assert await bus.status("taken") == first


async def test_another_submitter_cannot_take_an_id(bus: Bus, scheduling: Fleet) -> None:
    await accepted(bus, rehearsal(job_id="taken"))
    await until_read(bus)
    await send(bus, "submit", "taken", encode(rehearsal(seconds=1)), submitter="mallory")
    [(subject, letter)] = await letters(bus)
    assert (subject, letter.subject.split(".")[-3]) == ("duplicate-id.taken", "mallory")
    assert (await bus.status("taken")).submitted_by == "tester"


# What a valid job becomes


async def test_record_says_what_the_job_needs_and_who_asked(bus: Bus, scheduling: Fleet) -> None:
    asked = CapabilityRequirements(needs_lvm=True)
    spec = msgspec.structs.replace(
        rehearsal(policy={"priority": 2}), capability_requirements=asked, pool="berlin"
    )
    record = await accepted(bus, spec)
    assert (record.pool, record.lane, record.priority) == ("berlin", "lvm+op-rehearse", 2)
    assert [each.by for each in record.transitions] == ["scheduler-1"] * 3
    stored = await bus.connection.get_last(
        bus.topology.jobs_stream, bus.grammar.job("berlin", "lvm+op-rehearse", 2, record.job_id)
    )
    assert stored is not None


async def test_naive_time_of_a_document_is_utc(bus: Bus, scheduling: Fleet) -> None:
    await send(bus, "submit", "naive", changed(created_at="2026-01-02T03:04:05"))
    entry = await bus.verdict("naive")
    assert entry is not None
    assert entry.record.created_at == dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


async def test_two_schedulers_handle_each_of_many_submissions_once(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler("scheduler-1")
    await fleet.scheduler("scheduler-2")
    specs = (rehearsal(job_id=f"j{number}") for number in range(200))
    ids = [job_id async for job_id in bus.submit_many(specs)]
    entries = [entry async for _, entry in bus.verdicts(dict.fromkeys(ids), timeout=20)]
    await until_read(bus)
    records = [record async for record in bus.jobs()]
    assert len(entries) == len(records) == 200
    assert {len(record.transitions) for record in records} == {3}
    assert await count(bus, bus.topology.jobs_stream) == 200
    assert await count(bus, bus.topology.dead_stream) == 0


async def test_drained_scheduler_leaves_what_comes_to_the_next(bus: Bus, fleet: Fleet) -> None:
    drain = await fleet.scheduler("scheduler-1")
    drain()
    await anyio.sleep(0.2)
    await fleet.scheduler("scheduler-2")
    record = await accepted(bus, rehearsal())
    assert record.transitions[0].by == "scheduler-2"
