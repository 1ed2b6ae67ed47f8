"""The road of a job, from submission to its end, over a real server."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import anyio
import msgspec
import nats
import psutil
import pytest

from h2kbus.client import Bus
from h2kbus.dead import DeadLetters
from h2kbus.errors import ErrorCode, JobFinished
from h2kbus.settings import ConnectionSettings
from subjects.spec import CapabilityRequirements
from subjects.states import State
from tests.conftest import Fleet, rehearsal

pytestmark = pytest.mark.anyio


async def test_job_passes_all_states_to_completed(bus: Bus, running: Fleet) -> None:
    record = await bus.result(await bus.submit(rehearsal(seconds=0.1)))
    assert record.state is State.COMPLETED
    assert [each.to for each in record.transitions] == [
        "CREATED", "VALIDATED", "QUEUED", "ASSIGNED", "RUNNING", "COMPLETED",
    ]  # fmt: skip
    assert record.result is not None
    assert record.result.summary == {"attempt": 1}
    assert set(record.result.metrics.phase_seconds) == {"first", "second"}


@pytest.mark.slow
async def test_long_job_shows_progress_in_its_record(bus: Bus, running: Fleet) -> None:
    job_id = await bus.submit(rehearsal(seconds=7))
    with anyio.fail_after(15):
        while (await bus.verdict(job_id)) is None or (await bus.status(job_id)).progress is None:
            await anyio.sleep(0.2)
    record = await bus.status(job_id)
    assert record.state is State.PROGRESSING
    await bus.cancel(job_id)
    assert (await bus.result(job_id)).state is State.CANCELLED


@pytest.mark.slow
async def test_watch_tells_everything_once_and_in_order(bus: Bus, running: Fleet) -> None:
    job_id = await bus.submit(rehearsal(seconds=1))
    events = [event async for event in bus.watch(job_id)]
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert events[0].state is State.QUEUED
    assert events[-1].state is State.COMPLETED
    assert events[-1].progress_percent == 100
    assert [event.progress_percent for event in events] == sorted(event.progress_percent for event in events)
    assert {"first", "second"} <= {event.phase for event in events}


async def test_watch_of_a_finished_job_replays_it(bus: Bus, running: Fleet) -> None:
    job_id = await bus.submit(rehearsal())
    await bus.result(job_id)
    states = [event.state async for event in bus.watch(job_id)]
    assert states == [State.QUEUED, State.RUNNING, State.COMPLETED]


async def test_foreign_client_reads_json_from_first_to_terminal_event(
    bus: Bus, running: Fleet, settings: ConnectionSettings
) -> None:
    """No code of ours reads here: any NATS client sees the whole story on one subscription."""
    foreign = await nats.connect(settings.url)
    seen = await foreign.subscribe(f"{settings.root}.progress.>")
    await foreign.flush()
    job_id = await bus.submit(rehearsal(seconds=0.6))
    events: list[dict[str, Any]] = []
    while not events or events[-1]["state"] not in ("COMPLETED", "FAILED", "CANCELLED"):
        message = await seen.next_msg(timeout=10)
        assert message.subject == f"{settings.root}.progress.{job_id}"
        events.append(json.loads(message.data))
    await foreign.close()
    assert events[0]["state"] == "QUEUED"
    assert events[-1]["state"] == "COMPLETED"
    assert {event["job_id"] for event in events} == {job_id}
    assert all(dt.datetime.fromisoformat(event["timestamp"]).tzinfo for event in events)


async def test_failure_is_told_with_its_code_and_phase(bus: Bus, running: Fleet) -> None:
    record = await bus.result(await bus.submit(rehearsal(seconds=0.1, fail="TOOL_FAILED")))
    assert record.state is State.FAILED
    assert record.result is not None
    assert record.result.error is not None
    assert (record.result.error.code, record.result.error.phase) == (ErrorCode.TOOL_FAILED, "second")


@pytest.mark.slow
async def test_retryable_failure_is_tried_again(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    spec = rehearsal(fail="TOOL_FAILED", fail_until_attempt=2, mark=str(mark), policy={"retry_count": 1})
    record = await bus.result(await bus.submit(spec))
    assert record.state is State.COMPLETED
    assert mark.read_text().split() == ["1", "2"]
    assert [error.code for error in record.errors] == [ErrorCode.TOOL_FAILED]
    assert State.RETRYING in [each.to for each in record.transitions]


async def test_final_failure_is_not_tried_again(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    spec = rehearsal(fail="IMAGE_UNSAFE", mark=str(mark), policy={"retry_count": 3})
    assert (await bus.result(await bus.submit(spec))).state is State.FAILED
    assert mark.read_text().split() == ["1"]


async def test_defect_of_an_operation_is_kept_with_its_trace(bus: Bus, running: Fleet) -> None:
    record = await bus.result(await bus.submit(rehearsal(defect=True)))
    assert record.result is not None
    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.INTERNAL
    assert "ZeroDivisionError" in (record.result.error.stack_trace or "")


async def test_running_job_stops_when_cancelled(bus: Bus, running: Fleet) -> None:
    job_id = await bus.submit(rehearsal(seconds=50))
    async for event in bus.watch(job_id):
        if event.state is State.PROGRESSING:
            break
    await bus.cancel(job_id, "not needed")
    with anyio.fail_after(10):
        record = await bus.result(job_id)
    assert record.state is State.CANCELLED
    assert record.cancel_requested


@pytest.mark.slow
async def test_cancelled_tool_is_gone_with_its_files_even_if_it_ignores_the_signal(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    spec = rehearsal(seconds=47.11, stubborn_tool=True, output=str(tmp_path))
    job_id = await bus.submit(spec)
    async for event in bus.watch(job_id):
        if event.state is State.PROGRESSING:
            break
    assert [each.name[:8] for each in tmp_path.iterdir() if each.is_dir()] == [".h2kbus-"]
    await bus.cancel(job_id)
    with anyio.fail_after(10):
        assert (await bus.result(job_id)).state is State.CANCELLED
    assert [each.name for each in tmp_path.iterdir()] == [f"{job_id}.log"]
    with anyio.fail_after(5):  # the kernel takes a moment to end the others of a group that was killed
        while any("47.11" in (each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])):
            await anyio.sleep(0.01)


async def test_job_parked_for_a_retry_is_cancelled_at_once(bus: Bus, running: Fleet) -> None:
    job_id = await bus.submit(rehearsal(fail="TOOL_FAILED", policy={"retry_count": 5}))
    with anyio.fail_after(10):
        while not await bus.verdict(job_id) or (await bus.status(job_id)).state is not State.RETRYING:
            await anyio.sleep(0.02)
    assert (await bus.status(job_id)).next_attempt_at is not None
    await bus.cancel(job_id)
    with anyio.fail_after(10):
        record = await bus.result(job_id)
    assert (record.state, record.attempt) == (State.CANCELLED, 1)


async def test_attempt_ends_when_its_time_is_up(
    bus: Bus, running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortest time that a job may ask for is a minute: here the clock is turned forward."""
    job_id = await bus.submit(rehearsal(seconds=50))
    async for event in bus.watch(job_id):
        if event.state is State.PROGRESSING:
            break
    monkeypatch.setattr("workers.lease.HeldLease.overdue", True)
    record = await bus.result(job_id)
    assert record.state is State.FAILED
    assert record.result is not None
    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.TIMEOUT
    assert "longer than 7200 s" in record.result.error.message


async def test_queued_job_is_cancelled_without_a_worker(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    job_id = await bus.submit(rehearsal())
    await bus.verdict(job_id)
    await bus.cancel(job_id, "not needed")
    record = await bus.result(job_id)
    assert (record.state, record.attempt) == (State.CANCELLED, 0)


async def test_worker_clears_away_a_job_that_was_cancelled_before_it_came(
    bus: Bus, fleet: Fleet, tmp_path: Path
) -> None:
    await fleet.scheduler()
    job_id = await bus.submit(rehearsal(mark=str(tmp_path / "mark")))
    await bus.verdict(job_id)
    await bus.cancel(job_id)
    await bus.result(job_id)
    await fleet.worker()
    assert await lane_messages(bus) == 0
    assert (await bus.status(job_id)).state is State.CANCELLED
    assert not (tmp_path / "mark").exists()


async def test_message_that_outlived_its_record_is_not_worked_on(
    bus: Bus, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job ended so long ago that the record has expired: a worker that comes now must not revive it."""
    monkeypatch.setattr("workers.claim.FORGOTTEN_SECONDS", 0.0)
    await fleet.scheduler()
    job_id = await bus.submit(rehearsal(mark=str(tmp_path / "mark")))
    await bus.verdict(job_id)
    await bus.cancel(job_id)
    await bus.result(job_id)
    await forget(bus)
    await fleet.worker()
    assert await lane_messages(bus) == 0
    letters = [each async for each in DeadLetters(bus).read(job_id=job_id)]
    assert [each.letter.message for each in letters] == ["its record has expired, so it ended long ago"]
    assert not (tmp_path / "mark").exists()


async def forget(bus: Bus) -> None:
    """Take all records away, as age does."""
    stream = bus.topology.bucket_stream(bus.topology.jobs_bucket)
    config = (await bus.connection.api(f"STREAM.INFO.{stream}"))["config"]
    await bus.connection.api(f"STREAM.DELETE.{stream}")
    await bus.connection.api(f"STREAM.CREATE.{stream}", config)


async def test_finished_job_cannot_be_cancelled(bus: Bus, running: Fleet) -> None:
    job_id = await bus.submit(rehearsal())
    await bus.result(job_id)
    with pytest.raises(JobFinished):
        await bus.cancel(job_id)


async def test_retry_makes_a_new_job_that_names_its_parent(bus: Bus, running: Fleet) -> None:
    job_id = await bus.submit(rehearsal())
    await bus.result(job_id)
    new_id = await bus.retry(job_id)
    await bus.verdict(new_id)
    record = await bus.result(new_id)
    assert (record.state, record.parent) == (State.COMPLETED, job_id)


async def test_job_submitted_before_any_worker_waits_for_one(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    job_id = await bus.submit(rehearsal())
    await bus.verdict(job_id)
    await fleet.worker()
    assert (await bus.result(job_id)).state is State.COMPLETED


async def test_job_that_asks_for_more_than_the_host_has_waits_and_says_why(bus: Bus, running: Fleet) -> None:
    asked = CapabilityRequirements(min_memory_gb=100_000)
    job_id = await bus.submit(msgspec.structs.replace(rehearsal(), capability_requirements=asked))
    with anyio.fail_after(5):
        while not (await bus.verdict(job_id) and (await bus.status(job_id)).pending_reason):
            await anyio.sleep(0.05)
    record = await bus.status(job_id)
    assert record.state is State.QUEUED
    assert "100000 GB of memory" in (record.pending_reason or "")


async def test_urgent_jobs_go_first(bus: Bus, fleet: Fleet, tmp_path: Path) -> None:
    await fleet.scheduler()
    for priority in (7, 3, 10, 1):
        spec = rehearsal(job_id=f"p{priority}", policy={"priority": priority})
        await bus.verdict(await bus.submit(spec))
    await fleet.worker(slots=1)
    records = [await bus.result(f"p{priority}") for priority in (1, 3, 7, 10)]
    begun = [next(each.at for each in record.transitions if each.to is State.RUNNING) for record in records]
    assert begun == sorted(begun)


async def test_job_goes_only_to_a_worker_that_can_do_it(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    await fleet.worker("plain", tokens=("qemu-img",))
    await fleet.worker("able", tokens=("qemu-img", "op-rehearse"))
    record = await bus.result(await bus.submit(rehearsal()))
    assert record.worker_id == "able"


@pytest.mark.slow
async def test_least_specialised_idle_worker_gets_the_plain_job(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    await bus.result(await warm_lane(bus, fleet))
    await fleet.worker("special", tokens=("op-rehearse", "nbd", "lvm", "mount"))
    await fleet.worker("ordinary", tokens=("op-rehearse",))
    await anyio.sleep(1)
    records = [await bus.result(await bus.submit(rehearsal())) for _ in range(5)]
    assert {record.worker_id for record in records} == {"ordinary"}


@pytest.mark.slow
async def test_drained_worker_hands_its_job_back(bus: Bus, fleet: Fleet, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    await fleet.scheduler()
    drain = await fleet.worker("first", grace=0.1)
    job_id = await bus.submit(rehearsal(seconds=1.5, mark=str(mark)))
    async for event in bus.watch(job_id):
        if event.state is State.PROGRESSING:
            break
    drain()
    await fleet.worker("second")
    record = await bus.result(job_id)
    assert (record.state, record.worker_id, record.attempt) == (State.COMPLETED, "second", 1)


async def test_worker_leaves_the_fleet_when_drained(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    drain = await fleet.worker()
    assert [worker.worker_id for worker in await bus.workers()] == ["worker-1"]
    drain()
    with anyio.fail_after(5):
        while await bus.workers():
            await anyio.sleep(0.05)


async def test_many_jobs_are_each_done_once(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    specs = (rehearsal(mark=str(mark)) for _ in range(300))
    ids = [job_id async for job_id in bus.submit_many(specs)]
    states = {record.job_id: record.state async for record in bus.results(ids)}
    assert set(states) == set(ids)
    assert set(states.values()) == {State.COMPLETED}
    assert mark.read_text().split() == ["1"] * 300
    assert await lane_messages(bus) == 0


async def warm_lane(bus: Bus, fleet: Fleet) -> str:
    """Make the lane known, so that workers park on it."""
    drain = await fleet.worker("warm")
    job_id = await bus.submit(rehearsal())
    await bus.result(job_id)
    drain()
    return job_id


async def lane_messages(bus: Bus) -> int:
    with anyio.fail_after(5):
        while True:
            info = await bus.connection.api(f"STREAM.INFO.{bus.topology.jobs_stream}")
            if info["state"]["messages"] == 0:
                return 0
            await anyio.sleep(0.05)
