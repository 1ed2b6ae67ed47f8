"""At most so many jobs with one label run at once, whoever dies meanwhile."""

import datetime as dt

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.connection import Connection
from scheduler.limits import Limits
from subjects.record import JobRecord
from subjects.spec import JobSpec
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal
from tests.scheduler.conftest import accepted, held_by_a_dead_worker, lives

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LEASE = 3.0
HOST = "source-host/esx-07"


def touching(job_id: str, *, places: int = 2, label: str = HOST, seconds: float = 0.0) -> JobSpec:
    spec = rehearsal(job_id=job_id, seconds=seconds)
    return msgspec.structs.replace(spec, limit={label: places})


@pytest.fixture
async def watchful(fleet: Fleet) -> Fleet:
    await fleet.scheduler(lease_seconds=LEASE)
    return fleet


async def held(bus: Bus, label: str = HOST) -> tuple[str, ...]:
    return next((each.jobs for each in await bus.limits() if each.label == label), ())


async def until_held(bus: Bus, *jobs: str) -> None:
    with anyio.fail_after(15):
        while await held(bus) != jobs:
            await anyio.sleep(0.05)


async def test_job_waits_while_its_limit_is_reached_and_says_so(bus: Bus, watchful: Fleet) -> None:
    await watchful.worker(slots=10)
    for name in ("a", "b"):
        await accepted(bus, touching(name, seconds=30))
    record = await accepted(bus, touching("c"))
    assert record.state is State.VALIDATED
    assert record.pending_reason == f"waits for one of 2 places under the limit {HOST}"
    await bus.cancel("a")
    assert (await bus.result("c")).state is State.COMPLETED
    await until_held(bus, "b")


async def test_jobs_with_other_labels_do_not_wait(bus: Bus, watchful: Fleet) -> None:
    await watchful.worker(slots=10)
    await accepted(bus, touching("a", places=1, seconds=30))
    await accepted(bus, touching("b", places=1, label="source-host/esx-08"))
    assert (await bus.result("b")).state is State.COMPLETED


async def test_ceiling_of_the_operators_counts_when_it_is_lower(bus: Bus, watchful: Fleet) -> None:
    await watchful.worker(slots=10)
    await bus.set_ceiling(HOST, 1)
    await accepted(bus, touching("a", places=9, seconds=30))
    await anyio.sleep(0.5)
    record = await accepted(bus, touching("b", places=9))
    assert record.pending_reason == f"waits for one of 1 places under the limit {HOST}"
    await bus.set_ceiling(HOST, None)
    assert (await bus.result("b")).state is State.COMPLETED


async def test_place_comes_back_from_a_job_whose_worker_died(bus: Bus, watchful: Fleet) -> None:
    await lives(bus, "dead")
    await held_by_a_dead_worker(bus, touching("a", places=1), LEASE)
    assert (await accepted(bus, touching("b", places=1))).state is State.VALIDATED
    await watchful.worker()
    assert (await bus.result("b")).state is State.COMPLETED
    assert (await bus.status("a")).state is State.FAILED


async def test_urgent_job_gets_the_place_that_becomes_free(bus: Bus, watchful: Fleet) -> None:
    await watchful.worker(slots=10)
    await accepted(bus, touching("first", places=1, seconds=30))
    for number, priority in enumerate((9, 5, 1, 5)):
        spec = touching(f"p{priority}-{number}", places=1, seconds=5)
        policy = msgspec.structs.replace(spec.execution_policy, priority=priority)
        await accepted(bus, msgspec.structs.replace(spec, execution_policy=policy))
    await bus.cancel("first")
    await until_held(bus, "p1-2")


async def test_each_of_several_labels_holds_and_nobody_waits_in_a_circle(bus: Bus, watchful: Fleet) -> None:
    await watchful.scheduler("scheduler-2", lease_seconds=LEASE)
    for number in range(2):
        await watchful.worker(f"w{number}", slots=10)
    labels = ({"a": 1, "b": 1}, {"b": 1, "c": 2}, {"c": 2, "a": 1})
    specs = [
        msgspec.structs.replace(rehearsal(job_id=f"m{number}", seconds=0.02), limit=labels[number % 3])
        for number in range(45)
    ]
    ids = [each async for each in bus.submit_many(specs)]
    with anyio.fail_after(150):
        records = [record async for record in bus.results(ids)]
    assert {record.state for record in records} == {State.COMPLETED}
    for label, most in (("a", 1), ("b", 1), ("c", 2)):
        of_label = [each for each in records if each.spec and label in each.spec.limit]
        assert _most_at_once(of_label) <= most, label


async def test_places_that_a_dead_scheduler_took_half_way_are_given_back(
    bus: Bus, connection: Connection, topology: Topology, watchful: Fleet
) -> None:
    await lives(bus, "w1")
    limits = Limits(connection, topology, bus.store)
    assert await limits.take("half", {"a": 1}) is None
    assert await limits.take("other", {"b": 1}) is None
    assert await limits.take("half", {"a": 1, "b": 1}) == "waits for one of 1 places under the limit b"
    assert await held(bus, "a") == ()


async def test_job_that_nobody_can_run_takes_no_place(bus: Bus, watchful: Fleet) -> None:
    record = await accepted(bus, touching("a", places=1))
    assert (record.state, record.pending_reason) == (State.VALIDATED, "no live worker")
    assert await held(bus) == ()
    await watchful.worker()
    assert (await bus.result("a")).state is State.COMPLETED


async def test_limit_holds_at_every_instant_with_two_schedulers(bus: Bus, watchful: Fleet) -> None:
    await watchful.scheduler("scheduler-2", lease_seconds=LEASE)
    for number in range(3):
        await watchful.worker(f"w{number}", slots=10)
    specs = [touching(f"j{number}", places=3, seconds=0.05) for number in range(60)]
    ids = [each async for each in bus.submit_many(specs)]
    with anyio.fail_after(120):
        records = [record async for record in bus.results(ids)]
    assert {record.state for record in records} == {State.COMPLETED}
    assert _most_at_once(records) == 3


def _most_at_once(records: list[JobRecord]) -> int:
    spans = [(_entered(each, State.RUNNING), _entered(each, State.COMPLETED)) for each in records]
    return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)


def _entered(record: JobRecord, state: State) -> dt.datetime:
    return next(each.at for each in record.transitions if each.to is state)
