"""Records are written by compare-and-set only, and finished ones expire."""

import datetime as dt

import pytest

from h2kbus.connection import Connection
from h2kbus.errors import ErrorCode, JobNotFound, NotProvisioned, RevisionConflict
from h2kbus.store import JobStore
from subjects.lifecycle import cancelled, created, pending
from subjects.record import JobRecord
from subjects.result import JobError
from subjects.topology import RECORD_TTL_SECONDS, Topology
from tests.conftest import rehearsal

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def store(provisioned: Connection, topology: Topology) -> JobStore:
    return JobStore(provisioned, topology)


def queued(job_id: str = "j1") -> JobRecord:
    return created(rehearsal(), job_id=job_id, submitter="tester", lane="any", now=NOW, by="test")


def ended(record: JobRecord) -> JobRecord:
    return cancelled(record, JobError(code=ErrorCode.CANCELLED, message="enough"), now=NOW, by="test")


async def header(store: Connection, topology: Topology, job_id: str) -> str | None:
    stream = topology.bucket_stream(topology.jobs_bucket)
    answer = await store.ask(f"$JS.API.DIRECT.GET.{stream}.{topology.record_subject(job_id)}")
    return (answer.headers or {}).get("Nats-TTL")


async def test_record_is_read_as_it_was_written(store: JobStore) -> None:
    entry = await store.create(queued())
    assert await store.find("j1") == entry
    assert await store.get("j1") == entry


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


async def test_finished_record_expires(store: JobStore, provisioned: Connection, topology: Topology) -> None:
    first = await store.create(queued())
    await store.swap(ended(first.record), first.revision)
    assert await header(provisioned, topology, "j1") == f"{RECORD_TTL_SECONDS}s"


async def test_unfinished_record_never_expires(
    store: JobStore, provisioned: Connection, topology: Topology
) -> None:
    await store.create(queued())
    assert await header(provisioned, topology, "j1") is None


async def test_bucket_that_is_not_there_is_named(connection: Connection, topology: Topology) -> None:
    with pytest.raises(NotProvisioned):
        await JobStore(connection, topology).find("j1")
