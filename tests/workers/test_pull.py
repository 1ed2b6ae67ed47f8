import pytest

from h2kbus.connection import Connection
from h2kbus.pull import Delivery
from subjects.fleet import LaneAnnouncement
from subjects.topology import Topology
from workers.pull import LanePuller

pytestmark = pytest.mark.anyio


async def test_what_arrives_while_a_surplus_is_given_back_is_neither_lost_nor_done_twice(
    connection: Connection, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing real can be made to arrive in that very moment, so the sending of the answer is watched."""
    puller = LanePuller(connection, topology)
    puller.serve((LaneAnnouncement(pool="default", lane="any", priority=5, consumer="lane"),), frozenset())
    first, second, late = (Delivery(connection, each, b"", each, "lane", 1) for each in ("a", "b", "c"))
    given_back: list[str] = []

    async def publish(subject: str, payload: bytes, reply: str = "") -> None:
        if not given_back:
            puller._on_delivery(late)
        given_back.append(subject)

    monkeypatch.setattr(connection, "publish_unconfirmed", publish)
    for delivery in (first, second):
        puller._on_delivery(delivery)
    kept = await puller.next(1)
    assert sorted([*given_back, *(each.reply for each in kept)]) == ["a", "b", "c"]
    assert [each.reply for each in kept] == ["a"]
