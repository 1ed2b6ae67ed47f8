"""Records are written by compare-and-set only, and finished ones expire."""

import datetime as dt
from pathlib import Path

import anyio
import pytest

from h2kbus.connection import Connection, connect
from h2kbus.errors import ErrorCode, JobNotFound, NotProvisioned, RevisionConflict
from h2kbus.provision import provision
from h2kbus.settings import ConnectionSettings
from h2kbus.store import JobStore
from subjects.grammar import Grammar
from subjects.lifecycle import cancelled, created, pending
from subjects.record import JobRecord
from subjects.result import JobError
from subjects.topology import SECOND, Topology
from tests.conftest import rehearsal
from tests.servers import start_server, wheel_server

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def store(provisioned: Connection, topology: Topology) -> JobStore:
    return JobStore(provisioned, topology)


def queued(job_id: str = "j1") -> JobRecord:
    return created(rehearsal(), job_id=job_id, submitter="tester", lane="any", now=NOW, by="test")


def ended(record: JobRecord) -> JobRecord:
    return cancelled(record, JobError(code=ErrorCode.CANCELLED, message="enough"), now=NOW, by="test")


async def test_record_is_read_as_it_was_written(store: JobStore) -> None:
    entry = await store.create(queued())
    for found in (await store.find("j1"), await store.get("j1")):
        assert found is not None
        assert (found.record, found.revision) == (entry.record, entry.revision)


async def test_record_is_created_once(store: JobStore) -> None:
    await store.create(queued())
    with pytest.raises(RevisionConflict):
        await store.create(queued())


async def test_swap_replaces_what_was_read(store: JobStore) -> None:
    first = await store.create(queued())
    second = await store.swap(pending(first.record, "no worker", now=NOW), first.revision)
    assert second.revision > first.revision
    assert (await store.get("j1")).record.pending_reason == "no worker"


async def test_second_of_two_swaps_loses(store: JobStore) -> None:
    first = await store.create(queued())
    await store.swap(pending(first.record, "mine", now=NOW), first.revision)
    with pytest.raises(RevisionConflict):
        await store.swap(pending(first.record, "theirs", now=NOW), first.revision)
    assert (await store.get("j1")).record.pending_reason == "mine"


async def test_swap_of_a_record_that_is_not_there_loses(store: JobStore) -> None:
    with pytest.raises(RevisionConflict):
        await store.swap(queued(), 7)


async def test_unknown_job_is_not_found(store: JobStore) -> None:
    assert await store.find("unknown") is None
    with pytest.raises(JobNotFound, match="no job unknown"):
        await store.get("unknown")


async def test_many_are_found_in_the_order_asked_for(store: JobStore) -> None:
    for number in range(5):
        await store.create(queued(f"j{number}"))
    found = await store.find_many(["j4", "unknown", "j0", "j4"])
    assert [entry and entry.record.job_id for entry in found] == ["j4", None, "j0", "j4"]


async def test_more_are_found_than_are_asked_for_at_once(store: JobStore) -> None:
    await store.create(queued("last"))
    found = await store.find_many([*(f"unknown-{number}" for number in range(600)), "last"])
    assert [entry.record.job_id for entry in found if entry] == ["last"]
    assert len(found) == 601


async def test_scan_gives_each_job_once_with_its_newest_record(store: JobStore) -> None:
    entries = {number: await store.create(queued(f"j{number}")) for number in range(3)}
    await store.swap(ended(entries[0].record), entries[0].revision)
    seen = [(entry.record.job_id, entry.record.state.terminal) async for entry in store.scan()]
    assert seen == [("j1", False), ("j2", False), ("j0", True)]


async def test_scan_since_a_moment_leaves_out_what_was_written_before(
    store: JobStore, provisioned: Connection, topology: Topology
) -> None:
    for number in range(3):
        await store.create(queued(f"j{number}"))
    stream = topology.bucket_stream(topology.jobs_bucket)
    moment = await provisioned.get_last(stream, topology.record_subject("j1"))
    assert moment is not None
    assert [entry.record.job_id async for entry in store.scan(moment.time)] == ["j1", "j2"]


async def test_scan_since_the_future_gives_nothing(store: JobStore) -> None:
    await store.create(queued())
    later = (NOW + dt.timedelta(hours=1)).isoformat()
    assert [entry async for entry in store.scan(later)] == []


async def test_scan_of_an_empty_bucket_gives_nothing(store: JobStore) -> None:
    assert [entry async for entry in store.scan()] == []


@pytest.mark.slow
async def test_record_that_has_expired_does_not_come_back_when_the_server_is_killed(tmp_path: Path) -> None:
    """With an expiry of its own, a finished job came back as it was before its end: running."""
    config = {"jetstream": {"store_dir": str(tmp_path / "js"), "sync_interval": "always"}}
    process, url = start_server(wheel_server(), tmp_path / "first", config)
    topology = Topology(Grammar())
    async with connect(ConnectionSettings(url=url)) as connection:
        await provision(connection, topology)
        name, store = topology.bucket_stream(topology.jobs_bucket), JobStore(connection, topology)
        info = await connection.api(f"STREAM.INFO.{name}")
        short = {"max_age": SECOND, "duplicate_window": SECOND}
        await connection.api(f"STREAM.UPDATE.{name}", {**info["config"], **short})
        first = await store.create(queued())
        await store.swap(ended(first.record), first.revision)
        with anyio.fail_after(10):
            while await store.find("j1"):
                await anyio.sleep(0.05)
        process.kill()
        process.wait()
    process, url = start_server(wheel_server(), tmp_path / "second", config)
    async with connect(ConnectionSettings(url=url)) as connection:
        assert await JobStore(connection, topology).find("j1") is None
    process.kill()
    process.wait()


async def test_bucket_that_is_not_there_is_named(connection: Connection, topology: Topology) -> None:
    with pytest.raises(NotProvisioned):
        await JobStore(connection, topology).find("j1")
