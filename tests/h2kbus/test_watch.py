"""A watcher sees each event once and in order, whenever it comes and whatever it misses."""

import datetime as dt
from collections.abc import AsyncIterator

import anyio
import pytest
from nats.aio.subscription import Subscription

from h2kbus import watch
from h2kbus.connection import Connection, connect
from h2kbus.errors import PermissionDenied
from h2kbus.inbox import denial
from h2kbus.journal import publish_event
from h2kbus.settings import ConnectionSettings
from h2kbus.watch import EventFeed
from h2kbus.wire import MessageHandler
from subjects.events import ProgressEvent
from subjects.states import State
from subjects.topology import Topology


async def tell(
    connection: Connection,
    topology: Topology,
    *numbers: int,
    job_id: str = "j1",
    state: State = State.RUNNING,
) -> None:
    for number in numbers:
        event = ProgressEvent(
            job_id=job_id,
            seq=number,
            timestamp=dt.datetime.now(dt.UTC),
            state=state,
            phase="work",
            progress_percent=0,
        )
        await publish_event(connection, topology, event)


async def nothing() -> ProgressEvent | None:
    return None


async def take(feed: AsyncIterator[ProgressEvent], count: int) -> list[int]:
    with anyio.fail_after(10):
        return [(await anext(feed)).seq for _ in range(count)]


async def test_late_joiner_is_told_what_happened(provisioned: Connection, topology: Topology) -> None:
    await tell(provisioned, topology, 1, 2, 3)
    feed = EventFeed(provisioned, topology, "j1").follow(nothing)
    assert await take(feed, 3) == [1, 2, 3]


async def test_past_and_present_join_without_gap_or_repetition(
    provisioned: Connection, topology: Topology
) -> None:
    await tell(provisioned, topology, 1, 2)
    feed = EventFeed(provisioned, topology, "j1").follow(nothing)
    assert await take(feed, 1) == [1]
    await tell(provisioned, topology, 3, 4)
    assert await take(feed, 3) == [2, 3, 4]
    await tell(provisioned, topology, 5)
    assert await take(feed, 1) == [5]


async def test_events_of_other_jobs_are_not_told(provisioned: Connection, topology: Topology) -> None:
    await tell(provisioned, topology, 1, job_id="other")
    await tell(provisioned, topology, 2)
    assert await take(EventFeed(provisioned, topology, "j1").follow(nothing), 1) == [2]


async def test_repeated_event_is_told_once(provisioned: Connection, topology: Topology) -> None:
    await tell(provisioned, topology, 1, 1, 2, 2, 3)
    assert await take(EventFeed(provisioned, topology, "j1").follow(nothing), 3) == [1, 2, 3]


async def test_late_words_of_a_stale_worker_are_not_told(provisioned: Connection, topology: Topology) -> None:
    await tell(provisioned, topology, 10_000, 20_000, 10_001, 20_001)
    assert await take(EventFeed(provisioned, topology, "j1").follow(nothing), 3) == [10_000, 20_000, 20_001]


async def test_what_is_no_event_is_left_out(provisioned: Connection, topology: Topology) -> None:
    await provisioned.publish(topology.grammar.progress("j1"), b"not an event")
    feed = EventFeed(provisioned, topology, "j1").follow(nothing)
    await tell(provisioned, topology, 1)
    assert await take(feed, 1) == [1]
    await provisioned.publish(topology.grammar.progress("j1"), b"{}")
    await tell(provisioned, topology, 2)
    assert await take(feed, 1) == [2]


async def test_one_feed_may_follow_every_job(provisioned: Connection, topology: Topology) -> None:
    feed = EventFeed(provisioned, topology, "*")
    async with feed.open() as live:
        await tell(provisioned, topology, 5, job_id="a")
        await tell(provisioned, topology, 3, job_id="b")
        with anyio.fail_after(5):
            assert [(await live.receive()).job_id for _ in range(2)] == ["a", "b"]


@pytest.fixture
async def deaf(
    provisioned: Connection, settings: ConnectionSettings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Connection]]:
    """Two connections, the second of which gets no live events."""
    async with connect(settings) as cannot:
        listen = cannot.listen

        async def elsewhere(subject: str, handler: MessageHandler) -> Subscription:
            return await listen("elsewhere", handler)

        monkeypatch.setattr(cannot, "listen", elsewhere)
        yield [provisioned, cannot]


async def test_events_that_the_subscription_missed_are_read_from_the_stream(
    deaf: list[Connection], topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RESYNC_SECONDS", 0.1)
    hears, cannot = deaf
    await tell(hears, topology, 1)
    feed = EventFeed(cannot, topology, "j1").follow(nothing)
    assert await take(feed, 1) == [1]
    await tell(hears, topology, 2, 3)
    assert await take(feed, 2) == [2, 3]


async def test_watcher_that_may_not_hear_is_told_so(
    provisioned: Connection, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(subject: str, handler: MessageHandler) -> Subscription:
        raise denial(subject)

    monkeypatch.setattr(provisioned, "listen", refused)
    with pytest.raises(PermissionDenied, match="progress"):
        await take(EventFeed(provisioned, topology, "j1").follow(nothing), 1)


async def test_end_of_a_job_whose_events_have_expired_is_told(
    provisioned: Connection, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RESYNC_SECONDS", 0.1)
    last = ProgressEvent(
        job_id="j1",
        seq=9,
        timestamp=dt.datetime.now(dt.UTC),
        state=State.COMPLETED,
        phase="completed",
        progress_percent=100,
    )

    async def closing() -> ProgressEvent | None:
        return last

    assert await take(EventFeed(provisioned, topology, "j1").follow(closing), 1) == [9]


async def test_watching_makes_no_consumer(provisioned: Connection, topology: Topology) -> None:
    feed = EventFeed(provisioned, topology, "j1").follow(nothing)
    await tell(provisioned, topology, 1)
    await take(feed, 1)
    info = await provisioned.api(f"STREAM.INFO.{topology.progress_stream}")
    assert info["state"]["consumer_count"] == 0


async def test_feed_that_is_closed_leaves_no_subscription(
    provisioned: Connection, topology: Topology
) -> None:
    before = len(provisioned.nats._subs)
    async with EventFeed(provisioned, topology, "j1").open():
        assert len(provisioned.nats._subs) == before + 1
    assert len(provisioned.nats._subs) == before
