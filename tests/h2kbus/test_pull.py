"""Pulls end as they should, count what they bring, and leave nothing behind at the server."""

import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable

import anyio
import pytest

from h2kbus.connection import Connection, connect
from h2kbus.provision import provision
from h2kbus.pull import ANSWER_SECONDS, Delivery, Pull, PullInbox, PullRequest
from subjects.commands import Verb
from subjects.topology import SECOND, Topology
from tests.h2kbus.conftest import OwnServer

SHORT = SECOND // 5
LONG = 20 * SECOND


class Puller:
    """An inbox on the stream of commands, and what it was given."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self.topology = topology
        self.deliveries: list[Delivery] = []
        self.ends = 0
        self.inbox = PullInbox(connection, topology.commands_stream, self.deliveries.append, self._count)

    def _count(self) -> None:
        self.ends += 1

    async def send(self, batch: int = 1, *, consumer: str | None = None, **request: object) -> Pull:
        body = PullRequest(batch, **request)  # type: ignore[arg-type] # the fields of a pull, by name
        return await self.inbox.send(consumer or self.topology.scheduler_consumer, body)

    async def until(self, count: int) -> list[Delivery]:
        with anyio.fail_after(5):
            while len(self.deliveries) < count:
                await anyio.sleep(0.005)
        return self.deliveries


@contextlib.asynccontextmanager
async def pulling(connection: Connection, topology: Topology) -> AsyncIterator[Puller]:
    puller = Puller(connection, topology)
    await puller.inbox.open()
    try:
        yield puller
    finally:
        await puller.inbox.close()


@pytest.fixture
async def puller(provisioned: Connection, topology: Topology) -> AsyncIterator[Puller]:
    async with pulling(provisioned, topology) as made:
        yield made


async def command(connection: Connection, topology: Topology, *ids: str) -> None:
    subjects = [topology.grammar.command("tester", Verb.SUBMIT, each) for each in ids]
    for outcome in await connection.publish_together(*((subject, b"x") for subject in subjects)):
        assert isinstance(outcome, int)


def ids(deliveries: list[Delivery]) -> list[str]:
    return [each.subject.rpartition(".")[2] for each in deliveries]


async def finished(pull: Pull) -> Pull:
    with anyio.fail_after(5):
        await pull.wait()
    return pull


async def test_no_wait_pull_of_an_empty_consumer_ends_at_once(puller: Puller) -> None:
    pull = await finished(await puller.send(no_wait=True))
    assert (pull.over, pull.failed, puller.deliveries) == (True, False, [])


async def test_no_wait_pull_brings_what_is_there(
    puller: Puller, provisioned: Connection, topology: Topology
) -> None:
    await command(provisioned, topology, "a", "b")
    pull = await finished(await puller.send(5, no_wait=True))
    assert (ids(puller.deliveries), pull.failed) == (["a", "b"], False)


async def test_pull_is_over_when_its_batch_is_full(
    puller: Puller, provisioned: Connection, topology: Topology
) -> None:
    await command(provisioned, topology, *"abcde")
    await finished(await puller.send(3, expires=LONG))
    assert ids(puller.deliveries) == ["a", "b", "c"]


@pytest.mark.slow
async def test_pulls_that_are_over_are_forgotten(
    puller: Puller, provisioned: Connection, topology: Topology
) -> None:
    """A worker sends hundreds a second, for months."""
    await command(provisioned, topology, "a")
    full, empty = await puller.send(1, expires=SHORT), await puller.send(1, expires=SHORT)
    for each in (full, empty):
        await finished(each)
    remembered = [weakref.ref(full), weakref.ref(empty)]
    del full, empty, each
    await anyio.sleep(SHORT / SECOND + ANSWER_SECONDS + 0.5)
    gc.collect()
    assert [each() for each in remembered] == [None, None]


async def test_pull_waits_for_what_comes(puller: Puller, provisioned: Connection, topology: Topology) -> None:
    pull = await puller.send(expires=LONG)
    await command(provisioned, topology, "late")
    await finished(pull)
    assert ids(puller.deliveries) == ["late"]


async def test_pull_ends_when_its_time_has_passed(puller: Puller) -> None:
    pull = await finished(await puller.send(expires=SHORT))
    assert (pull.over, pull.failed) == (True, False)


async def test_each_end_of_a_pull_is_told_once(
    puller: Puller, provisioned: Connection, topology: Topology
) -> None:
    await command(provisioned, topology, "a")
    await finished(await puller.send(expires=SHORT))
    await finished(await puller.send(expires=SHORT))
    assert puller.ends == 2


async def test_pull_of_an_unknown_consumer_fails_at_once(puller: Puller) -> None:
    pull = await finished(await puller.send(consumer="unknown", expires=LONG))
    assert pull.failed


async def test_pull_of_a_consumer_that_is_deleted_fails_at_once(
    puller: Puller, provisioned: Connection, topology: Topology
) -> None:
    pull = await puller.send(expires=LONG)
    consumer = f"{topology.commands_stream}.{topology.scheduler_consumer}"
    with anyio.fail_after(5):
        # The server answers for a pull that it has queued; it takes a moment to queue one.
        while (await provisioned.api(f"CONSUMER.INFO.{consumer}"))["num_waiting"] == 0:
            await anyio.sleep(0.01)
    await provisioned.api(f"CONSUMER.DELETE.{consumer}")
    assert (await finished(pull)).failed


async def test_two_pulls_of_one_consumer_are_filled_one_after_the_other(
    puller: Puller, provisioned: Connection, topology: Topology
) -> None:
    first, second = await puller.send(2, expires=LONG), await puller.send(1, expires=LONG)
    await command(provisioned, topology, "a", "b")
    await finished(first)
    assert not second.over
    await command(provisioned, topology, "c")
    await finished(second)


async def test_delivery_says_what_it_is(puller: Puller, provisioned: Connection, topology: Topology) -> None:
    await command(provisioned, topology, "a")
    await puller.send(expires=LONG)
    [delivery] = await puller.until(1)
    assert (delivery.subject, delivery.data, delivery.consumer, delivery.times_delivered) == (
        topology.grammar.command("tester", Verb.SUBMIT, "a"), b"x", topology.scheduler_consumer, 1,
    )  # fmt: skip


async def test_message_that_is_given_back_counts_its_deliveries(
    puller: Puller, provisioned: Connection, topology: Topology
) -> None:
    await command(provisioned, topology, "a")
    for count in (1, 2, 3):
        await puller.send(expires=LONG)
        delivery = (await puller.until(count))[-1]
        assert delivery.times_delivered == count
        await delivery.nak()


async def test_message_given_back_with_a_delay_comes_later(
    puller: Puller, provisioned: Connection, topology: Topology
) -> None:
    await command(provisioned, topology, "a")
    await puller.send(expires=LONG)
    [delivery] = await puller.until(1)
    await delivery.nak(0.3)
    await provisioned.flush()
    await finished(await puller.send(no_wait=True))
    assert len(puller.deliveries) == 1
    await puller.send(expires=LONG)
    assert len(await puller.until(2)) == 2


@pytest.mark.parametrize("confirmed", [True, False])
async def test_acknowledged_message_is_gone(
    puller: Puller, provisioned: Connection, topology: Topology, confirmed: bool
) -> None:
    await command(provisioned, topology, "a")
    await puller.send(expires=LONG)
    [delivery] = await puller.until(1)
    await (delivery.ack() if confirmed else delivery.ack_unconfirmed())
    await provisioned.flush()
    with anyio.fail_after(5):
        while (await provisioned.api(f"STREAM.INFO.{topology.commands_stream}"))["state"]["messages"]:
            await anyio.sleep(0.01)


async def test_server_forgets_the_pulls_of_a_closed_inbox(
    provisioned: Connection, topology: Topology
) -> None:
    """A pull that stayed behind would be given the message, and hold it until its `ack_wait` is over."""
    async with pulling(provisioned, topology) as closed:
        for _ in range(3):
            await closed.send(10, expires=LONG)
        await provisioned.flush()
    await command(provisioned, topology, "later")
    async with pulling(provisioned, topology) as other:
        await other.send(expires=LONG)
        [delivery] = await other.until(1)
    assert (delivery.times_delivered, closed.deliveries) == (1, [])


async def test_reconnection_ends_the_pulls_that_the_server_has_forgotten(
    own_server: Callable[..., OwnServer], topology: Topology
) -> None:
    server = own_server()
    async with connect(server.settings()) as connection:
        await provision(connection, topology)
        async with pulling(connection, topology) as puller:
            pulls = [await puller.send(5, expires=LONG) for _ in range(3)]
            await connection.flush()
            server.kill()
            server.start()
            for pull in pulls:
                assert not (await finished(pull)).failed
            await command(connection, topology, "after")
            await puller.send(expires=LONG)
            assert ids(await puller.until(1)) == ["after"]
