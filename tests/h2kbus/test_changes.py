"""A follower of the jobs bucket misses nothing, and is given nothing twice."""

from collections.abc import AsyncIterator, Callable

import anyio
import msgspec
import pytest

from h2kbus.changes import ChangeFeed
from h2kbus.connection import BATCH_BYTES, BATCH_SIZE, Connection, connect
from h2kbus.errors import BusError, NotProvisioned
from h2kbus.provision import provision
from subjects.topology import Topology
from tests.h2kbus.conftest import OwnServer


class Part(msgspec.Struct, frozen=True):
    """What this follower wants to know of a record."""

    number: int
    ballast: str = ""


@pytest.fixture
async def feed(provisioned: Connection, topology: Topology) -> ChangeFeed:
    return ChangeFeed(provisioned, topology)


async def write(
    connection: Connection, topology: Topology, numbers: range, *, key: str = "j{}", ballast: int = 0
) -> None:
    for start in range(numbers.start, numbers.stop, 500):
        some = range(start, min(start + 500, numbers.stop))
        parts = [(topology.record_subject(key.format(each)), Part(each, "x" * ballast)) for each in some]
        await connection.publish_together(*((name, msgspec.json.encode(part)) for name, part in parts))


async def read(feed: ChangeFeed) -> list[int]:
    return [part.number async for _, part in feed.read(Part)]


async def requests(connection: Connection, topology: Topology) -> list[str]:
    """What the server is asked from here on about the bucket's messages."""
    seen: list[str] = []
    stream = topology.bucket_stream(topology.jobs_bucket)
    for subject in (f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*", f"$JS.API.DIRECT.GET.{stream}"):
        await connection.listen(subject, lambda message: seen.append(message.subject))
    return seen


async def test_each_change_is_given_once(
    feed: ChangeFeed, provisioned: Connection, topology: Topology
) -> None:
    assert await read(feed) == []
    await write(provisioned, topology, range(5))
    assert await read(feed) == [0, 1, 2, 3, 4]
    assert await read(feed) == []
    await write(provisioned, topology, range(5, 7))
    assert await read(feed) == [5, 6]


async def test_job_that_changed_again_and_again_is_given_as_it_is_now(
    feed: ChangeFeed, provisioned: Connection, topology: Topology
) -> None:
    await read(feed)
    await write(provisioned, topology, range(100), key="same")
    assert await read(feed) == [99]


@pytest.mark.parametrize(
    ("records", "ballast", "pulls"),
    [(BATCH_SIZE, 0, 1), (BATCH_SIZE + 10, 0, 2), (20, BATCH_BYTES // 15, 2)],
    ids=["a batch", "more than a batch", "more bytes than a batch"],
)
async def test_all_of_many_changes_come_in_their_order(
    feed: ChangeFeed, provisioned: Connection, topology: Topology, records: int, ballast: int, pulls: int
) -> None:
    await write(provisioned, topology, range(records), ballast=ballast)
    seen = await requests(provisioned, topology)
    assert await read(feed) == list(range(records))
    assert len(seen) == pulls


@pytest.mark.slow
async def test_read_of_a_bucket_that_changes_all_the_time_ends(
    feed: ChangeFeed, provisioned: Connection, topology: Topology
) -> None:
    async def go_on() -> None:
        while True:
            await write(provisioned, topology, range(50))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(go_on)
            for _ in range(20):
                await read(feed)
            group.cancel_scope.cancel()


async def test_follower_whose_consumer_is_gone_says_so_and_goes_on_where_it_was(
    feed: ChangeFeed, provisioned: Connection, topology: Topology
) -> None:
    await write(provisioned, topology, range(3))
    assert await read(feed) == [0, 1, 2]
    stream = topology.bucket_stream(topology.jobs_bucket)
    for name in (await provisioned.api(f"CONSUMER.NAMES.{stream}"))["consumers"]:
        await provisioned.api(f"CONSUMER.DELETE.{stream}.{name}")
    await write(provisioned, topology, range(3, 6))
    with pytest.raises(BusError, match="does not answer"):
        await read(feed)
    assert await read(feed) == [3, 4, 5]


async def test_read_that_is_given_up_loses_nothing(
    feed: ChangeFeed, provisioned: Connection, topology: Topology
) -> None:
    await write(provisioned, topology, range(10))
    changes = feed.read(Part)
    assert (await anext(changes))[1].number == 0
    assert isinstance(changes, AsyncIterator)
    await changes.aclose()  # type: ignore[attr-defined] # an async generator has it
    assert await read(feed) == list(range(1, 10))


async def test_what_is_no_record_stops_nobody(
    feed: ChangeFeed, provisioned: Connection, topology: Topology
) -> None:
    await write(provisioned, topology, range(1))
    await provisioned.publish(topology.record_subject("broken"), b"no record")
    await write(provisioned, topology, range(1, 2))
    assert await read(feed) == [0, 1]


async def test_bucket_that_was_made_anew_is_read_from_its_start(
    feed: ChangeFeed, provisioned: Connection, topology: Topology
) -> None:
    await write(provisioned, topology, range(3))
    assert await read(feed) == [0, 1, 2]
    await provisioned.api(f"STREAM.DELETE.{topology.bucket_stream(topology.jobs_bucket)}")
    with pytest.raises(BusError):
        await read(feed)
    with pytest.raises(NotProvisioned):
        await read(feed)
    feed.start_anew()
    await provision(provisioned, topology)
    await write(provisioned, topology, range(7, 9))
    assert await read(feed) == [7, 8]


@pytest.mark.slow
async def test_follower_outlives_its_server(own_server: Callable[..., OwnServer], topology: Topology) -> None:
    server = own_server()
    async with connect(server.settings()) as connection:
        await provision(connection, topology)
        feed = ChangeFeed(connection, topology)
        await write(connection, topology, range(3))
        assert await read(feed) == [0, 1, 2]
        server.kill()
        with pytest.raises(BusError):
            await read(feed)
        server.start()
        await connection.publish(topology.record_subject("j3"), b'{"number":3}', timeout=20)
        found: list[int] = []
        with anyio.fail_after(20):
            while not found:
                try:
                    found = await read(feed)
                except BusError:
                    await anyio.sleep(0.1)
        assert found == [3]
