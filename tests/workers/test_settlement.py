"""The end of an attempt, when the bus answers late, or not at all, or has given the job to somebody else."""

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from h2kbus.client import Bus
from h2kbus.errors import BusTimeout, ErrorCode
from h2kbus.store import Entry, JobStore
from h2kbus.watch import EventFeed
from subjects.lifecycle import failed
from subjects.record import JobRecord
from subjects.result import JobError
from subjects.states import State
from tests.conftest import Fleet, rehearsal
from workers import publication
from workers.lease import HeldLease

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_outcome_that_is_written_later_than_we_were_told_is_ours(
    bus: Bus, running: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write times out, a look shows the old record, and then the write arrives after all."""
    swap, find = JobStore.swap, JobStore.find
    late: list[tuple[JobRecord, int]] = []

    async def slow_swap(self: JobStore, record: JobRecord, revision: int) -> Entry:
        if record.state is State.COMPLETED and not late:
            late.append((record, revision))
            raise BusTimeout("made up")
        return await swap(self, record, revision)

    async def find_then_write(self: JobStore, job_id: str) -> Entry | None:
        found = await find(self, job_id)
        if len(late) == 1:
            late.append(late[0])
            await swap(self, *late[0])
        return found

    monkeypatch.setattr(JobStore, "swap", slow_swap)
    monkeypatch.setattr(JobStore, "find", find_then_write)
    job_id = await bus.submit(rehearsal(publish=True, output=str(tmp_path)))
    assert (await bus.result(job_id)).state is State.COMPLETED
    with anyio.fail_after(10):
        while [each for each in tmp_path.iterdir() if each.is_dir()]:
            await anyio.sleep(0.02)
    assert (tmp_path / f"{job_id}.out").read_text() == "attempt 1"


async def test_worker_that_dies_after_publishing_is_followed_by_one_that_adopts_it(
    bus: Bus, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is taken by another worker, which executes nothing: the job must not start twice."""
    await fleet.scheduler(lease_seconds=3)
    place_all = publication._place_all
    published, woken = anyio.Event(), threading.Event()

    def place_and_hang(*args: Any) -> None:
        place_all(*args)
        anyio.from_thread.run_sync(published.set)
        woken.wait(60)

    monkeypatch.setattr(publication, "_place_all", place_and_hang)
    # The dead do not look at the clock either.
    monkeypatch.setattr(HeldLease, "tick", lambda *_: None)
    await fleet.worker("dies")
    mark = tmp_path / "mark"
    spec = rehearsal(publish=True, output=str(tmp_path / "out"), mark=str(mark), policy={"idempotent": False})
    job_id = await bus.submit(spec)
    await published.wait()
    await fleet.worker("adopts")
    record = await bus.result(job_id)
    assert (record.state, record.worker_id) == (State.COMPLETED, "adopts")
    assert (tmp_path / "out" / f"{job_id}.out").read_text() == "attempt 1"
    assert mark.read_text().split() == ["1"]
    woken.set()
    await anyio.sleep(1)
    assert (tmp_path / "out" / f"{job_id}.out").read_text() == "attempt 1"


async def test_worker_that_lost_the_job_takes_back_what_it_published(
    bus: Bus, running: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its outputs had their names, somebody else ended the job."""
    swap = JobStore.swap

    async def overtaken(self: JobStore, record: JobRecord, revision: int) -> Entry:
        if record.state is State.COMPLETED and record.result is not None:
            entry = await self.get(record.job_id)
            error = JobError(code=ErrorCode.WORKER_LOST, message="made up")
            await swap(self, failed(entry.record, error, now=record.updated_at, by="x"), entry.revision)
        return await swap(self, record, revision)

    monkeypatch.setattr(JobStore, "swap", overtaken)
    job_id = await bus.submit(rehearsal(publish=True, output=str(tmp_path)))
    with anyio.fail_after(15):
        while not await bus.verdict(job_id) or not (await bus.status(job_id)).state.terminal:
            await anyio.sleep(0.02)
        while [each.name for each in tmp_path.iterdir()] != [f"{job_id}.log"]:
            await anyio.sleep(0.02)
    assert (await bus.status(job_id)).state is State.FAILED


async def test_bus_that_is_silent_for_a_moment_does_not_cost_the_attempt(
    bus: Bus, running: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of work end with one question to the bus: it is asked again, for as long as the lease lasts."""
    swap = JobStore.swap
    silences = iter(range(2))

    async def silent_at_first(self: JobStore, record: JobRecord, revision: int) -> Entry:
        if record.publishing and next(silences, None) is not None:
            raise BusTimeout("made up")
        return await swap(self, record, revision)

    monkeypatch.setattr(JobStore, "swap", silent_at_first)
    record = await bus.result(await bus.submit(rehearsal(publish=True, output=str(tmp_path))))
    assert (record.state, record.attempt) == (State.COMPLETED, 1)


async def test_full_progress_stream_does_not_hold_up_the_outcome(bus: Bus, running: Fleet) -> None:
    name = bus.topology.progress_stream
    info = await bus.connection.api(f"STREAM.INFO.{name}")
    full = {"max_msgs": 1, "discard": "new"}
    await bus.connection.api(f"STREAM.UPDATE.{name}", {**info["config"], **full})
    record = await bus.result(await bus.submit(rehearsal(seconds=0.5)))
    assert (record.state, record.attempt) == (State.COMPLETED, 1)
    # Its last event is told when there is room again.
    await bus.connection.api(f"STREAM.UPDATE.{name}", {**info["config"], "max_msgs": -1})
    async with EventFeed(bus.connection, bus.topology, record.job_id).open() as events:
        with anyio.fail_after(10):
            assert (await events.receive()).state is State.COMPLETED
