"""A log is read while it is being written: every line once, whatever happens to attempts, workers and bus."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import anyio
import pytest

import h2kbus
from h2kbus.artifacts import Upload, chunks_of, find, log_name, put, read
from h2kbus.client import Bus
from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage, JobNotFound
from h2kbus.log_feed import LogFeed, LogPart
from subjects.spec import JobSpec
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal
from tests.h2kbus.conftest import OwnServer
from tests.workers.test_artifacts import uploading

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LINES = [f"line {number:02}" for number in range(12)]


def talking(output: Path, **more: object) -> JobSpec:
    """A job that logs a line every quarter of a second."""
    return uploading(output, **{"log_lines": LINES, "log_pause": 0.25, **more})


async def collected(parts: AsyncGenerator[LogPart]) -> tuple[list[str], list[str]]:
    """What was logged, without its times, and what was said about it."""
    content, notices = b"", []
    async for part in parts:
        content += part.content
        notices += [part.notice] if part.notice else []
    return [line.partition(" ")[2] for line in content.decode().splitlines()], notices


def logged(lines: list[str]) -> list[str]:
    return [each for each in lines if each.startswith("line ")]


async def test_lines_are_there_while_the_attempt_runs(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    job_id = await bus.submit(talking(tmp_path))
    await bus.verdict(job_id)
    async with contextlib.aclosing(LogFeed(bus, job_id).follow()) as parts:
        async for part in parts:
            if b"line 0" in part.content:
                break
    assert not (await bus.status(job_id)).state.terminal
    lines, notices = await collected(LogFeed(bus, job_id).so_far())
    assert logged(lines) == LINES[: len(logged(lines))]
    assert notices == ["attempt 1 still runs, and more of its log is to come"]


async def test_log_that_is_followed_has_every_line_once_and_ends_with_the_job(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    job_id = await bus.submit(talking(tmp_path))
    feed = LogFeed(bus, job_id)
    lines, _ = await collected(feed.follow())
    assert logged(lines) == LINES
    assert feed.record is not None
    assert feed.record.state is State.COMPLETED


async def test_log_is_stored_once_and_is_an_ordinary_object_in_the_end(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    job_id = await bus.submit(talking(tmp_path))
    await bus.result(job_id)
    store = await bus.connection.nats.jetstream().object_store(bus.topology.artifacts_store)
    found = await store.get(log_name(job_id, 1))
    assert found.data == (tmp_path / f"{job_id}.log").read_bytes()
    described = await find(bus.connection, bus.topology, log_name(job_id, 1))
    assert described is not None
    chunks = [each async for each in chunks_of(bus.connection, bus.topology, described)]
    assert sum(len(each.data) for each in chunks) == described.size
    assert len(chunks) == described.chunks > 1


async def test_short_attempt_stores_its_log_with_two_messages(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    await bus.result(await bus.submit(talking(tmp_path, log_pause=0)))
    info = await bus.connection.api(f"STREAM.INFO.OBJ_{bus.topology.artifacts_store}")
    assert info["state"]["messages"] == 4, "two of the log, two of the manifest"


async def test_following_goes_on_with_the_next_attempt(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    spec = talking(tmp_path, fail="TOOL_FAILED", fail_until_attempt=2, policy={"retry_count": 1})
    lines, _ = await collected(LogFeed(bus, await bus.submit(spec)).follow())
    assert logged(lines) == LINES * 2
    assert [each[:9] for each in lines if each.startswith("attempt")] == ["attempt 1", "attempt 2"]


async def test_following_goes_on_with_an_attempt_that_was_handed_back(
    bus: Bus, fleet: Fleet, tmp_path: Path
) -> None:
    """It is begun again under its number."""
    await fleet.scheduler()
    drain = await fleet.worker("worker-1")
    job_id = await bus.submit(talking(tmp_path))
    feed = LogFeed(bus, job_id)
    content = b""
    async for part in feed.follow():
        content += part.content
        if b"line 02" in part.content and b"on worker-2" not in content:
            drain()
            await fleet.worker("worker-2")
    lines = content.decode().splitlines()
    assert sum("attempt 1 of rehearse on worker-1" in each for each in lines) == 1
    assert sum("attempt 1 of rehearse on worker-2" in each for each in lines) == 1
    assert sum("line 11" in each for each in lines) == 1


async def test_job_that_waits_is_waited_for_and_says_so(bus: Bus, fleet: Fleet, tmp_path: Path) -> None:
    await fleet.scheduler()
    job_id = await bus.submit(talking(tmp_path, log_pause=0))
    content = b""
    notices: list[str] = []
    async for part in LogFeed(bus, job_id).follow():
        content += part.content
        if part.notice and not notices:
            await fleet.worker()
        notices += [part.notice] if part.notice else []
    assert notices[0].startswith(("the job is QUEUED", "the job waits for a scheduler"))
    assert content.count(b"line 11") == 1


async def test_job_that_is_not_there_is_said(bus: Bus, running: Fleet) -> None:
    with pytest.raises(JobNotFound):
        await collected(LogFeed(bus, "nobody").follow())


async def test_log_of_a_worker_that_was_lost_can_be_read(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    """What a worker stored before it died, under a job that has ended without it."""
    record = await bus.result(await bus.submit(rehearsal(output=str(tmp_path))))
    upload = Upload(bus.connection, bus.topology, log_name(record.job_id, 1))
    await upload.announce()
    await upload.write(b"00:00 the last words\n")
    for parts in (LogFeed(bus, record.job_id).so_far(), LogFeed(bus, record.job_id).follow()):
        lines, notices = await collected(parts)
        assert lines == ["the last words"]
        assert notices == ["attempt 1 ended without finishing its log: its worker was lost"]


async def test_log_that_was_changed_is_said_to_be_damaged(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    record = await bus.result(await bus.submit(rehearsal(output=str(tmp_path))))
    made = await put(bus.connection, bus.topology, log_name(record.job_id, 1), b"00:00 what was logged\n")
    await bus.connection.publish(f"$O.{bus.topology.artifacts_store}.C.{made.nuid}", b"and more")
    with pytest.raises(BusError, match="damaged"):
        await collected(LogFeed(bus, record.job_id).follow())


async def test_object_that_is_open_is_not_read_as_a_whole_one(
    provisioned: Connection, topology: Topology
) -> None:
    await Upload(provisioned, topology, "job/1/log").announce()
    found = await find(provisioned, topology, "job/1/log")
    assert found is not None
    with pytest.raises(InvalidMessage, match="not finished"):
        await anext(read(provisioned, topology, found))


async def test_outage_of_the_bus_loses_and_repeats_no_line(
    own_server: Callable[..., OwnServer], tmp_path: Path
) -> None:
    """Neither in the store nor for who follows, however often the server is killed."""
    server = own_server()
    async with contextlib.AsyncExitStack() as stack, anyio.create_task_group() as group:
        fleet = Fleet(server.settings(), group, stack)
        await fleet.scheduler()
        await fleet.worker()
        bus = await stack.enter_async_context(h2kbus.connect(settings=server.settings(), submitter="tester"))
        lines = [f"line {number:03}" for number in range(60)]
        job_id = await bus.submit(talking(tmp_path, log_lines=lines, log_pause=0.1))
        feed = LogFeed(bus, job_id)
        content = b""
        outages = 0
        async for part in feed.follow():
            content += part.content
            if part.content and outages < 2:
                outages += 1
                server.kill()
                await anyio.sleep(1)
                server.start()
        assert [each.split()[-1] for each in content.decode().splitlines() if " line " in each] == [
            each.split()[-1] for each in lines
        ]
        assert content == (tmp_path / f"{job_id}.log").read_bytes()
        group.cancel_scope.cancel()
    assert outages == 2
