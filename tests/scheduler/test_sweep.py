"""A job that waits in its lane says why, is found again when it vanished, and does not expire."""

import datetime as dt

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.connection import Connection
from h2kbus.store import JobStore
from scheduler.dispatch import Dispatch
from scheduler.fleet import FleetView
from scheduler.sweep import Sweep
from scheduler.waiting import Waiting
from subjects.record import JobRecord
from subjects.spec import CapabilityRequirements
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal
from tests.scheduler.conftest import TOKEN, accepted, lives

pytestmark = pytest.mark.anyio

HUGE = CapabilityRequirements(min_memory_gb=64)


async def swept(
    bus: Bus, connection: Connection, topology: Topology, job_id: str, days: int = 0
) -> JobRecord:
    """The job's record after a scheduler has looked at it, so many days later by the server's clock."""
    store, waiting = JobStore(connection, topology), Waiting()
    waiting.add((await store.get(job_id)).revision, 0.0)
    sweep = Sweep(Dispatch(connection, topology, store, "s"), FleetView(connection, topology), waiting)
    clock = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    await sweep.run_once(100.0, clock, after=60.0)
    assert len(waiting) == 1
    return await bus.status(job_id)


async def test_job_is_told_at_once_that_nobody_can_run_it(scheduling: Fleet, bus: Bus) -> None:
    record = await accepted(bus, rehearsal())
    assert (record.state, record.pending_reason) == (State.QUEUED, "no live worker")


async def test_words_say_what_the_job_wants_and_nobody_has(scheduling: Fleet, bus: Bus) -> None:
    await lives(bus, "w1")
    spec = msgspec.structs.replace(rehearsal(), capability_requirements=HUGE)
    expected = f"no live worker is in the pool default, has {TOKEN}, has 64 GB of memory"
    assert (await accepted(bus, spec)).pending_reason == expected


async def test_job_that_somebody_can_run_waits_for_no_reason(scheduling: Fleet, bus: Bus) -> None:
    await lives(bus, "w1")
    assert (await accepted(bus, rehearsal())).pending_reason is None


async def test_reason_goes_when_somebody_comes(
    scheduling: Fleet, bus: Bus, connection: Connection, topology: Topology
) -> None:
    await accepted(bus, rehearsal(job_id="j1"))
    await lives(bus, "w1")
    assert (await swept(bus, connection, topology, "j1")).pending_reason is None


async def test_reason_comes_when_the_last_worker_goes(
    scheduling: Fleet, bus: Bus, connection: Connection, topology: Topology
) -> None:
    await lives(bus, "w1")
    await accepted(bus, rehearsal(job_id="j1"))
    await lives(bus, "w1", cordoned=True)
    reason = (await swept(bus, connection, topology, "j1")).pending_reason
    assert reason == f"no live worker is in the pool default, has {TOKEN}, takes new jobs"


async def test_job_that_vanished_from_its_lane_is_put_back(
    scheduling: Fleet, bus: Bus, connection: Connection, topology: Topology
) -> None:
    await lives(bus, "w1")
    record = await accepted(bus, rehearsal(job_id="j1"))
    subject = topology.grammar.job(record.pool, record.lane, record.priority, "j1")
    with anyio.fail_after(5):
        while await connection.get_last(topology.jobs_stream, subject) is None:
            await anyio.sleep(0.01)
    await connection.api(f"STREAM.PURGE.{topology.jobs_stream}", {"filter": subject})
    await swept(bus, connection, topology, "j1")
    assert await connection.get_last(topology.jobs_stream, subject) is not None


@pytest.mark.parametrize(("days", "rewritten"), [(6, False), (8, True)])
async def test_record_of_a_job_that_waits_for_a_week_is_written_anew(
    scheduling: Fleet, bus: Bus, connection: Connection, topology: Topology, days: int, rewritten: bool
) -> None:
    await lives(bus, "w1")
    await accepted(bus, rehearsal(job_id="j1"))
    before = await bus.store.get("j1")
    await swept(bus, connection, topology, "j1", days)
    after = await bus.store.get("j1")
    assert (after.revision != before.revision) == rewritten
    assert after.record == before.record
