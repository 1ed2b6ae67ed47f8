"""What a scheduler does by itself, on a real server: nobody has to look after a job that is in trouble."""

import datetime as dt
from pathlib import Path

import anyio
import msgspec
import pytest

from h2kbus.cli.app import first_error
from h2kbus.client import Bus
from h2kbus.errors import BusError, JobNotFound
from h2kbus.watch import EventFeed
from scheduler import mending, sweep
from scheduler.service import Scheduler
from subjects.codec import decode
from subjects.codes import ErrorCode
from subjects.lifecycle import failed
from subjects.locks import ImageLock
from subjects.record import JobRecord
from subjects.result import JobError
from subjects.spec import JobSpec
from subjects.states import State
from tests.conftest import Fleet, rehearsal
from tests.scheduler.conftest import accepted, count, held_by_a_dead_worker

LEASE = 3.0

pytestmark = pytest.mark.slow


@pytest.fixture
async def watchful(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A scheduler whose leases are as short as they may be, and which often looks for what is missing."""
    monkeypatch.setattr(mending, "MEND_SECONDS", 0.2)
    await fleet.scheduler(lease_seconds=LEASE)
    return fleet


async def until(bus: Bus, job_id: str, *states: State) -> JobRecord:
    with anyio.fail_after(20):
        while (record := await bus.status(job_id)).state not in states:
            await anyio.sleep(0.05)
    return record


def trail(record: JobRecord) -> list[str]:
    return [str(each.to) for each in record.transitions]


async def test_job_of_a_lost_worker_is_shown_as_such_and_given_out_again(bus: Bus, watchful: Fleet) -> None:
    await held_by_a_dead_worker(bus, rehearsal(job_id="j1", policy={"retry_count": 1}), LEASE)
    record = await until(bus, "j1", State.RETRYING)
    assert record.errors[-1].code is ErrorCode.WORKER_LOST
    assert record.errors[-1].message == "dead went silent"
    assert record.pending_reason == "waits for attempt 2 after WORKER_LOST"
    await watchful.worker()
    record = await bus.result("j1")
    assert (record.state, record.attempt, record.worker_id) == (State.COMPLETED, 2, "worker-1")


@pytest.mark.parametrize("policy", [{"retry_count": 0}, {"retry_count": 5, "idempotent": False}])
async def test_lost_job_that_may_not_run_again_fails_without_any_worker(
    bus: Bus, watchful: Fleet, policy: dict[str, object]
) -> None:
    await held_by_a_dead_worker(bus, rehearsal(job_id="j1", policy=policy), LEASE)
    record = await until(bus, "j1", State.FAILED)
    assert record.result is not None
    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.WORKER_LOST
    assert [event.state async for event in bus.watch("j1")][-1] is State.FAILED


async def test_lost_job_is_cleared_away_by_the_next_worker(bus: Bus, watchful: Fleet, tmp_path: Path) -> None:
    entry = await held_by_a_dead_worker(bus, rehearsal(job_id="j1", output=str(tmp_path)), LEASE)
    left = tmp_path / f".h2kbus-j1-{entry.record.lease.token if entry.record.lease else 0}"
    left.mkdir()
    await until(bus, "j1", State.FAILED)
    await watchful.worker()
    with anyio.fail_after(20):
        while left.exists() or await count(bus, bus.topology.jobs_stream):
            await anyio.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


async def test_lost_job_is_cleared_away_though_its_lane_was_purged(
    bus: Bus, watchful: Fleet, tmp_path: Path
) -> None:
    entry = await held_by_a_dead_worker(bus, rehearsal(job_id="j1", output=str(tmp_path)), LEASE)
    left = tmp_path / f".h2kbus-j1-{entry.record.lease.token if entry.record.lease else 0}"
    left.mkdir()
    await until(bus, "j1", State.FAILED)
    with anyio.fail_after(5):
        while not await count(bus, bus.topology.jobs_stream):
            await anyio.sleep(0.02)
    await bus.connection.api(f"STREAM.PURGE.{bus.topology.jobs_stream}")
    await watchful.worker()
    with anyio.fail_after(20):
        while left.exists():
            await anyio.sleep(0.05)


async def test_job_lost_while_publishing_is_settled_by_a_worker_and_not_run_again(
    bus: Bus, watchful: Fleet, tmp_path: Path
) -> None:
    spec = rehearsal(
        job_id="j1", output=str(tmp_path), mark=str(tmp_path / "mark"), policy={"idempotent": False}
    )
    await held_by_a_dead_worker(bus, spec, LEASE, published=True)
    await watchful.worker()
    record = await until(bus, "j1", State.FAILED)
    assert record.result is not None
    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.WORKER_LOST
    assert not (tmp_path / "mark").exists()


async def test_lost_job_that_was_being_cancelled_is_cancelled(bus: Bus, watchful: Fleet) -> None:
    await held_by_a_dead_worker(bus, rehearsal(job_id="j1", policy={"retry_count": 3}), LEASE)
    await bus.cancel("j1", "not needed")
    record = await until(bus, "j1", State.CANCELLED)
    assert trail(record)[-1] == "CANCELLED"


async def test_job_whose_message_vanished_is_put_in_its_lane_again(bus: Bus, watchful: Fleet) -> None:
    await accepted(bus, rehearsal(job_id="j1"))
    await bus.connection.api(f"STREAM.PURGE.{bus.topology.jobs_stream}", {})
    await watchful.worker()
    assert (await bus.result("j1")).state is State.COMPLETED


async def test_end_that_nobody_has_told_is_told(bus: Bus, watchful: Fleet) -> None:
    """The worker died right after it had written the record, and its message has vanished as well."""
    entry = await held_by_a_dead_worker(bus, rehearsal(job_id="j1"), LEASE)
    lost = JobError(code=ErrorCode.TOOL_FAILED, message="made up")
    ended = failed(entry.record, lost, now=dt.datetime.now(dt.UTC), by="dead")
    await bus.store.swap(ended, entry.revision)
    await bus.connection.api(f"STREAM.PURGE.{bus.topology.jobs_stream}", {})
    with anyio.fail_after(20):
        async with EventFeed(bus.connection, bus.topology, "j1").open() as events:
            while (await events.receive()).state is not State.FAILED:
                pass


async def test_live_worker_keeps_its_job_beyond_a_lease(bus: Bus, watchful: Fleet, tmp_path: Path) -> None:
    await watchful.worker()
    spec = rehearsal(seconds=2.5 * LEASE, mark=str(tmp_path / "mark"), policy={"retry_count": 3})
    record = await bus.result(await bus.submit(spec))
    assert (record.state, record.attempt) == (State.COMPLETED, 1)
    assert (tmp_path / "mark").read_text().split() == ["1"]


async def test_two_schedulers_take_a_lost_job_back_once(bus: Bus, watchful: Fleet) -> None:
    await watchful.scheduler("scheduler-2", lease_seconds=LEASE)
    await held_by_a_dead_worker(bus, rehearsal(job_id="j1", policy={"retry_count": 5}), LEASE)
    await until(bus, "j1", State.RETRYING)
    await anyio.sleep(LEASE / 2)
    record = await bus.status("j1")
    assert trail(record).count("RETRYING") == 1
    assert await count(bus, bus.topology.jobs_stream) == 1


async def test_what_is_no_record_stops_nobody(bus: Bus, watchful: Fleet) -> None:
    """Somebody else has written into our buckets."""
    topology = bus.topology
    for subject in ("bad-record", "bad-lock"):
        await bus.connection.publish(topology.record_subject(subject), b"\x00")
    await bus.connection.publish(topology.lock_subject("bad"), b"[]")
    await bus.connection.publish(topology.lane_subject("default", "any", 9), b"{}")
    await watchful.worker()
    await anyio.sleep(0.5)
    assert (await bus.result(await bus.submit(rehearsal()))).state is State.COMPLETED


async def test_job_that_has_waited_for_long_is_written_anew(
    bus: Bus, watchful: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await bus.store.get((await accepted(bus, conversion("a"))).job_id)
    monkeypatch.setattr(sweep, "REFRESH_SECONDS", 1)
    with anyio.fail_after(20):
        while (later := await bus.store.get("a")).revision == entry.revision:
            await anyio.sleep(0.05)
    assert later.record == entry.record


# Points in time


async def in_seconds(bus: Bus, seconds: float) -> dt.datetime:
    return await bus.store.server_time() + dt.timedelta(seconds=seconds)


async def test_job_does_not_start_before_its_time(bus: Bus, watchful: Fleet) -> None:
    await watchful.worker()
    moment = await in_seconds(bus, 1.5)
    record = await accepted(bus, rehearsal(job_id="j1", policy={"not_before": moment}))
    assert (record.state, await count(bus, bus.topology.jobs_stream)) == (State.VALIDATED, 0)
    assert "does not start before" in (record.pending_reason or "")
    record = await bus.result("j1")
    assert record.state is State.COMPLETED
    assert await bus.store.server_time() >= moment


async def test_job_that_still_waits_at_its_deadline_fails(bus: Bus, watchful: Fleet) -> None:
    moment = await in_seconds(bus, 1)
    await accepted(bus, rehearsal(job_id="j1", policy={"deadline": moment}))
    record = await bus.result("j1")
    assert record.state is State.FAILED
    assert record.result is not None
    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.DEADLINE_EXCEEDED


async def test_job_that_runs_at_its_deadline_is_stopped(bus: Bus, watchful: Fleet) -> None:
    await watchful.worker()
    moment = await in_seconds(bus, 2)
    spec = rehearsal(job_id="j1", seconds=50, policy={"deadline": moment, "retry_count": 3})
    await bus.submit(spec)
    await bus.verdict("j1")
    with anyio.fail_after(15):
        record = await bus.result("j1")
    assert (record.state, record.attempt) == (State.FAILED, 1)
    assert record.result is not None
    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.DEADLINE_EXCEEDED


async def test_job_with_a_deadline_to_come_runs(bus: Bus, watchful: Fleet) -> None:
    await watchful.worker()
    moment = await in_seconds(bus, 60)
    record = await bus.result(await bus.submit(rehearsal(policy={"deadline": moment})))
    assert record.state is State.COMPLETED


# Image locks


def conversion(job_id: str, **artifacts: object) -> JobSpec:
    """A conversion that writes /nowhere/out/disk.qcow2; no worker here runs it."""
    spec = rehearsal(operation="convert", job_id=job_id)
    return msgspec.structs.replace(spec, artifacts=msgspec.structs.replace(spec.artifacts, **artifacts))


async def locks(bus: Bus) -> list[str]:
    stream = bus.topology.bucket_stream(bus.topology.locks_bucket)
    found = [each async for each in bus.connection.read(stream, bus.topology.lock_subject("*"))]
    return [decode(ImageLock, each.data).job_id for each in found if each.data]


async def test_second_job_that_writes_an_image_waits_for_the_first(bus: Bus, watchful: Fleet) -> None:
    first = await accepted(bus, conversion("a"))
    second = await accepted(bus, conversion("b", output_path="/nowhere//./out"))
    assert (first.state, second.state) == (State.QUEUED, State.VALIDATED)
    assert second.pending_reason == "waits for job a, which writes /nowhere/out/disk.qcow2"
    await bus.cancel("a")
    record = await until(bus, "b", State.QUEUED)
    assert (record.pending_reason, await locks(bus)) == ("no live worker", ["b"])


async def test_lock_is_given_back_when_its_job_has_ended(bus: Bus, watchful: Fleet) -> None:
    await accepted(bus, conversion("a"))
    assert await locks(bus) == ["a"]
    await bus.cancel("a")
    with anyio.fail_after(10):
        while await locks(bus):
            await anyio.sleep(0.05)


async def test_jobs_that_write_different_images_do_not_wait(bus: Bus, watchful: Fleet) -> None:
    await accepted(bus, conversion("a"))
    other = await accepted(bus, conversion("b", output_path="/nowhere/else"))
    unkept = await accepted(bus, conversion("c", store_fixed_image=False))
    assert {other.state, unkept.state} == {State.QUEUED}


# What somebody deleted


async def test_deleted_consumer_is_made_anew(bus: Bus, watchful: Fleet) -> None:
    record = await accepted(bus, rehearsal(job_id="j1"))
    consumer = bus.topology.lane_consumer(record.pool, record.lane, record.priority).durable_name
    await bus.connection.api(f"CONSUMER.DELETE.{bus.topology.jobs_stream}.{consumer}")
    await watchful.worker()
    assert (await bus.result("j1")).state is State.COMPLETED


async def test_deleted_lanes_are_announced_again(bus: Bus, watchful: Fleet) -> None:
    await accepted(bus, rehearsal(job_id="j1"))
    await bus.connection.api(f"STREAM.DELETE.{bus.topology.bucket_stream(bus.topology.lanes_bucket)}")
    with anyio.fail_after(15):
        while True:
            try:
                if await bus.lanes():
                    return
            except (BusError, JobNotFound):
                pass
            await anyio.sleep(0.1)


async def test_deleted_job_stream_is_filled_again_from_the_records(bus: Bus, watchful: Fleet) -> None:
    await accepted(bus, rehearsal(job_id="j1"))
    await bus.connection.api(f"STREAM.DELETE.{bus.topology.jobs_stream}")
    await watchful.worker()
    with anyio.fail_after(30):
        assert (await bus.result("j1")).state is State.COMPLETED


async def test_records_come_back_from_the_lanes_when_their_bucket_is_deleted(
    bus: Bus, watchful: Fleet
) -> None:
    await accepted(bus, rehearsal(job_id="j1"))
    await bus.connection.api(f"STREAM.DELETE.{bus.topology.bucket_stream(bus.topology.jobs_bucket)}")
    await watchful.worker()
    with anyio.fail_after(30):
        while True:
            try:
                if (await bus.status("j1")).state is State.COMPLETED:
                    return
            except (BusError, JobNotFound):
                pass
            await anyio.sleep(0.1)


async def test_stream_that_was_sealed_ends_the_scheduler_with_its_name(
    bus: Bus, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be mended is no matter of waiting: somebody has to decide."""
    monkeypatch.setattr(mending, "MEND_SECONDS", 0.2)
    service = Scheduler(bus.connection, fleet.topology, fleet.catalog, "scheduler-1")
    name = fleet.topology.jobs_stream

    async def serve_and_seal() -> None:
        async with anyio.create_task_group() as group:
            await group.start(service.serve)
            info = await bus.connection.api(f"STREAM.INFO.{name}")
            await bus.connection.api(f"STREAM.UPDATE.{name}", {**info["config"], "sealed": True})

    with pytest.raises(ExceptionGroup) as caught, anyio.fail_after(20):
        await serve_and_seal()
    error = first_error(caught.value)
    assert error.error_code is ErrorCode.CONTRACT_CONFLICT
    assert f"{name} is sealed" in str(error)
