"""What goes wrong between us and the server has a name of ours, and comes within its deadline."""

import gc
from collections.abc import AsyncIterator, Callable

import anyio
import pytest

from h2kbus.connection import Connection, connect
from h2kbus.errors import (
    BusFull,
    BusTimeout,
    BusUnreachable,
    NotProvisioned,
    PermissionDenied,
    RevisionConflict,
    SubjectTaken,
)
from h2kbus.pull import PullInbox, PullRequest
from h2kbus.settings import ConnectionSettings
from subjects.topology import SECOND, Topology
from tests.h2kbus.conftest import OwnServer

Start = Callable[..., OwnServer]

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
USERS = {
    "users": [
        {"user": "all", "password": "pass-all"},
        {
            "user": "some",
            "password": "pass-some",
            "permissions": {
                "publish": {"deny": ["forbidden.>", "$JS.API.DIRECT.GET.>", "$JS.API.CONSUMER.MSG.NEXT.>"]},
                "subscribe": {"deny": ["forbidden.>", "Forbidden.>", "_INBOX_else.>"]},
            },
        },
    ]
}


@pytest.fixture
async def restricted(own_server: Start) -> AsyncIterator[Connection]:
    async with connect(own_server(authorization=USERS).settings(user="some", password="pass-some")) as opened:
        yield opened


async def test_publish_that_the_server_refuses_is_denied_by_name(restricted: Connection) -> None:
    with pytest.raises(PermissionDenied, match=r"forbidden\.a"):
        await restricted.publish("forbidden.a", b"x")


async def test_request_that_the_server_refuses_is_denied_by_name(restricted: Connection) -> None:
    with pytest.raises(PermissionDenied, match=r"forbidden\.b"):
        await restricted.ask("forbidden.b", b"x")


@pytest.mark.parametrize("subject", ["forbidden.>", "forbidden.a", "Forbidden.A"])
async def test_subscription_that_the_server_refuses_is_denied_by_name(
    restricted: Connection, subject: str
) -> None:
    for _ in range(20):
        with pytest.raises(PermissionDenied, match=subject):
            await restricted.listen(subject, lambda message: None)


async def test_batch_that_the_server_refuses_is_denied_at_once(restricted: Connection) -> None:
    with anyio.fail_after(3), pytest.raises(PermissionDenied, match=r"DIRECT\.GET\.H2K_JOBS"):
        await restricted.get_batch("H2K_JOBS", {"seq": 1})


async def test_pull_that_the_server_refuses_is_denied_at_once(restricted: Connection) -> None:
    inbox = PullInbox(restricted, "H2K_JOBS", lambda delivery: None)
    await inbox.open()
    pull = await inbox.send("default_any_5", PullRequest(batch=1, expires=60 * SECOND))
    with anyio.fail_after(3), pytest.raises(PermissionDenied, match=r"MSG\.NEXT\.H2K_JOBS\.default_any_5"):
        await pull.wait()
    await inbox.close()


async def test_subscribing_that_is_cancelled_leaves_the_connection_whole(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The client takes an answer that nobody waits for as a broken connection."""

    async def listen(subject: str) -> None:
        await connection.listen(subject, lambda message: None)

    for steps in range(40):
        async with anyio.create_task_group() as group:
            group.start_soon(listen, f"cancelled.{steps}")
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    await connection.flush()
    assert caplog.text == ""


async def test_refusal_that_nobody_waits_for_is_logged(
    restricted: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await restricted.publish_unconfirmed("forbidden.hint", b"")
    await restricted.flush()
    assert "the server refused the publish for forbidden.hint" in caplog.text


async def test_inbox_that_belongs_to_another_user_is_denied_on_connecting(own_server: Start) -> None:
    server = own_server(authorization=USERS)
    settings = server.settings(user="some", password="pass-some", inbox_prefix="_INBOX_else")
    with pytest.raises(PermissionDenied, match="_INBOX_else"):
        async with connect(settings):
            pass


async def test_answers_arrive_in_the_users_own_inbox(own_server: Start) -> None:
    server = own_server(authorization=USERS)
    settings = server.settings(user="some", password="pass-some", inbox_prefix="_INBOX_some")
    async with (
        connect(settings) as connection,
        connect(server.settings(user="all", password="pass-all")) as spy,
    ):
        heard: list[str] = []
        await spy.listen("_INBOX_some.>", lambda message: heard.append(message.subject))
        await connection.api("INFO")
        await spy.flush()
    assert len(heard) == 1


async def test_one_refused_publish_does_not_harm_the_next(restricted: Connection) -> None:
    with pytest.raises(PermissionDenied):
        await restricted.publish("forbidden.a", b"x")
    with pytest.raises(NotProvisioned):
        await restricted.publish("allowed.a", b"x")


async def test_publish_to_no_stream_says_that_nothing_is_provisioned(connection: Connection) -> None:
    with pytest.raises(NotProvisioned, match=r"nobody\.stores\.this"):
        await connection.publish("nobody.stores.this", b"x")


async def test_reading_a_stream_that_is_not_there_says_that_nothing_is_provisioned(
    connection: Connection, topology: Topology
) -> None:
    with pytest.raises(NotProvisioned):
        await connection.get_last(topology.jobs_stream, "x")
    with pytest.raises(NotProvisioned):
        await connection.get_batch(topology.jobs_stream, {"seq": 1})


async def test_missing_stream_is_a_key_error_of_the_api(connection: Connection, topology: Topology) -> None:
    with pytest.raises(KeyError):
        await connection.api(f"STREAM.INFO.{topology.jobs_stream}")


async def test_lost_compare_and_set_is_a_revision_conflict(
    provisioned: Connection, topology: Topology
) -> None:
    subject = topology.record_subject("j1")
    first = await provisioned.publish(subject, b"1", {EXPECTED: "0"})
    with pytest.raises(RevisionConflict):
        await provisioned.publish(subject, b"2", {EXPECTED: "0"})
    assert await provisioned.publish(subject, b"3", {EXPECTED: str(first)}) > first


async def test_second_message_on_a_subject_of_a_queue_is_refused(
    provisioned: Connection, topology: Topology
) -> None:
    subject = topology.grammar.job("default", "any", 5, "j1")
    await provisioned.publish(subject, b"1")
    with pytest.raises(SubjectTaken):
        await provisioned.publish(subject, b"2")


async def test_publishing_together_tells_the_outcome_of_each(
    provisioned: Connection, topology: Topology
) -> None:
    subject = topology.grammar.job("default", "any", 5, "j1")
    outcomes = await provisioned.publish_together(
        (subject, b"1"), (subject, b"2"), ("nobody.stores.this", b"3")
    )
    assert [type(each) for each in outcomes] == [int, SubjectTaken, NotProvisioned]


async def test_payload_beyond_the_servers_limit_is_refused(own_server: Start) -> None:
    async with connect(own_server(max_payload=4096).settings()) as connection:
        assert connection.max_payload == 4096
        with pytest.raises(BusFull):
            await connection.publish("any.thing", bytes(5000))


async def test_stream_that_holds_all_it_may_is_bus_full(connection: Connection, topology: Topology) -> None:
    await make_stream(connection, topology, max_msgs=1)
    await connection.publish(f"{topology.grammar.root}.tiny.a", b"x")
    with pytest.raises(BusFull):
        await connection.publish(f"{topology.grammar.root}.tiny.b", b"x")


async def test_stream_without_room_is_bus_full_and_never_a_taken_subject(
    connection: Connection, topology: Topology
) -> None:
    """`SubjectTaken` counts as success when a job is submitted: it must never stand for a full disk."""
    await make_stream(connection, topology, max_bytes=1000)
    with pytest.raises(BusFull):
        await fill(connection, topology, 200)


async def test_account_without_room_is_bus_full(own_server: Start, topology: Topology) -> None:
    limits = {"max_file": 100_000, "max_mem": 100_000}
    accounts = {"A": {"jetstream": limits, "users": [{"user": "u", "password": "p"}]}}
    async with connect(own_server(accounts=accounts).settings(user="u", password="p")) as connection:
        await make_stream(connection, topology)
        with pytest.raises(BusFull):
            await fill(connection, topology, 20_000)


async def fill(connection: Connection, topology: Topology, size: int) -> None:
    for number in range(20):
        await connection.publish(f"{topology.grammar.root}.tiny.{number}", bytes(size))


async def make_stream(connection: Connection, topology: Topology, **limits: int) -> None:
    name = f"{topology.grammar.fleet}_TINY"
    config = {
        "name": name,
        "subjects": [f"{topology.grammar.root}.tiny.>"],
        "discard": "new",
        "storage": "file",
        "allow_direct": True,
        **limits,
    }
    await connection.api(f"STREAM.CREATE.{name}", config)


async def test_request_that_nobody_answers_ends_as_a_timeout(
    connection: Connection, topology: Topology
) -> None:
    subject = f"{topology.grammar.root}.silence"
    await connection.listen(subject, lambda message: None)
    with anyio.fail_after(5), pytest.raises(BusTimeout, match="in time"):
        await connection.ask(subject, timeout=0.1)


async def test_cancelled_request_does_not_disturb_the_next(
    connection: Connection, topology: Topology
) -> None:
    subject = f"{topology.grammar.root}.silence"
    await connection.listen(subject, lambda message: None)
    with anyio.move_on_after(0.05):
        await connection.ask(subject, timeout=5)
    with pytest.raises(NotProvisioned):
        await connection.publish("nobody.stores.this", b"x")


async def test_hundreds_of_requests_each_get_their_own_answer(
    provisioned: Connection, topology: Topology
) -> None:
    subjects = [topology.grammar.job("default", "any", 5, f"j{number}") for number in range(300)]
    sequences = await provisioned.publish_together(*((subject, subject.encode()) for subject in subjects))
    for subject, sequence in zip(subjects, sequences, strict=True):
        stored = await provisioned.get_last(topology.jobs_stream, subject)
        assert stored is not None
        assert (stored.seq, stored.data) == (sequence, subject.encode())


async def test_bus_that_goes_away_is_told_and_found_again_when_it_comes_back(
    own_server: Start, topology: Topology
) -> None:
    server = own_server()
    async with connect(server.settings()) as connection:
        await make_stream(connection, topology)
        server.kill()
        with pytest.raises((BusUnreachable, BusTimeout)):
            await connection.publish(f"{topology.grammar.root}.tiny.a", b"during", timeout=0.3)
        server.start()
        assert await connection.publish(f"{topology.grammar.root}.tiny.b", b"after", timeout=20) > 0


@pytest.mark.slow
async def test_attempts_to_reach_a_server_that_is_gone_are_not_remembered(own_server: Start) -> None:
    """A worker may be without one for hours, and tries several times a second."""
    server = own_server()
    async with connect(server.settings()):
        server.kill()
        await anyio.sleep(4)
        gc.collect()
        refused = [each for each in gc.get_objects() if isinstance(each, ConnectionRefusedError)]
        assert len(refused) < 5


async def test_request_under_way_ends_when_the_server_dies(own_server: Start) -> None:
    server = own_server()
    async with connect(server.settings()) as connection, anyio.create_task_group() as group:
        await connection.listen("silence", lambda message: None)

        async def ask() -> None:
            with pytest.raises(BusTimeout, match="connection was lost"):
                await connection.ask("silence", timeout=60)

        group.start_soon(ask)
        await anyio.sleep(0.1)
        with anyio.fail_after(10):
            server.kill()


async def test_nothing_published_while_away_is_sent_later(own_server: Start, topology: Topology) -> None:
    """The client would buffer it and send it when nobody expects it any more."""
    server = own_server()
    async with connect(server.settings()) as connection:
        await make_stream(connection, topology)
        server.kill()
        await anyio.sleep(0.1)
        with pytest.raises((BusUnreachable, BusTimeout)):
            await connection.publish(f"{topology.grammar.root}.tiny.a", b"stale", timeout=0.3)
        server.start()
        await connection.publish(f"{topology.grammar.root}.tiny.b", b"fresh", timeout=20)
        found = await connection.get_last(f"{topology.grammar.fleet}_TINY", f"{topology.grammar.root}.tiny.a")
    assert found is None


async def test_closed_connection_says_so(settings: ConnectionSettings) -> None:
    async with connect(settings) as connection:
        pass
    assert connection.closed.is_set()
    with pytest.raises(BusUnreachable):
        await connection.publish("any.thing", b"x", timeout=0.1)
