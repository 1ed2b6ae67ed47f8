"""The fleet: its workers by their heartbeats, its lanes and how full they are, its operators' orders."""

import contextlib
import datetime as dt
from typing import Any, Final

import msgspec

from h2kbus.answers import Stored
from h2kbus.connection import Connection
from h2kbus.errors import InvalidMessage, NotProvisioned
from subjects.codec import decode, encode
from subjects.fleet import LaneAnnouncement, WorkerCapabilities, WorkerOrder
from subjects.topology import Topology

_DELETED: Final = {"KV-Operation": "DEL"}


class LaneLoad(LaneAnnouncement, frozen=True, kw_only=True):
    """How full a lane is: jobs that wait and that workers hold, and workers that wait for its next job.

    `oldest_seconds` is the age of its oldest message by the server's clock, that of a running job included.
    """

    waiting: int
    running: int
    parked: int
    oldest_seconds: float | None = None


class _ConsumerState(msgspec.Struct, frozen=True):
    """The part of JetStream's consumer info that tells how busy it is."""

    name: str
    num_pending: int = 0
    num_ack_pending: int = 0
    num_waiting: int = 0
    ts: dt.datetime | None = None


async def read_workers(connection: Connection, topology: Topology) -> list[WorkerCapabilities]:
    """The workers bucket, by the workers' ids: those whose heartbeats have not stopped.

    What is no heartbeat is left out, so that nobody who writes one there hides the other workers.
    `last_heartbeat` is the time at which the server got it, by its own clock.
    """
    stream = topology.bucket_stream(topology.workers_bucket)
    live = []
    async for stored in connection.read(stream):
        with contextlib.suppress(InvalidMessage):
            if stored.data:
                received = msgspec.convert(stored.time, dt.datetime)
                worker = decode(WorkerCapabilities, stored.data)
                live.append(msgspec.structs.replace(worker, last_heartbeat=received))
    return sorted(live, key=lambda worker: worker.worker_id)


async def read_lanes(connection: Connection, topology: Topology) -> list[LaneAnnouncement]:
    """The lanes bucket, most urgent lanes first. What is no announcement is left out."""
    stream = topology.bucket_stream(topology.lanes_bucket)
    found = []
    async for stored in connection.read(stream):
        with contextlib.suppress(InvalidMessage):
            if stored.data:
                found.append(decode(LaneAnnouncement, stored.data))
    return sorted(found, key=lambda lane: (lane.priority, lane.pool, lane.lane))


async def read_loads(connection: Connection, topology: Topology) -> list[LaneLoad]:
    """How full each lane is, most urgent lanes first; one without a consumer is left out."""
    states = await _consumer_states(connection, topology.jobs_stream)
    lanes = [each for each in await read_lanes(connection, topology) if each.consumer in states]
    filters = [f"{topology.grammar.lane(each.pool, each.lane, each.priority)}.*" for each in lanes]
    oldest = await connection.get_first_together(topology.jobs_stream, filters)
    return [_load(lane, states[lane.consumer], first) for lane, first in zip(lanes, oldest, strict=True)]


def _load(lane: LaneAnnouncement, state: _ConsumerState, oldest: Stored | None) -> LaneLoad:
    age = None
    if oldest is not None and state.ts is not None:
        age = max(0.0, (state.ts - msgspec.convert(oldest.time, dt.datetime)).total_seconds())
    return LaneLoad(
        pool=lane.pool,
        lane=lane.lane,
        priority=lane.priority,
        consumer=lane.consumer,
        waiting=state.num_pending,
        running=state.num_ack_pending,
        parked=state.num_waiting,
        oldest_seconds=age,
    )


async def _consumer_states(connection: Connection, stream: str) -> dict[str, _ConsumerState]:
    """Of all the consumers of a stream, which come by the page."""
    found: dict[str, _ConsumerState] = {}
    while True:
        try:
            page: dict[str, Any] = await connection.api(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
        except KeyError:
            raise NotProvisioned(f"this server has no stream {stream}") from None
        states = msgspec.convert(page.get("consumers") or [], list[_ConsumerState])
        found |= {each.name: each for each in states}
        if not states or len(found) >= page["total"]:
            return found


async def give_order(
    connection: Connection, topology: Topology, worker_id: str, order: WorkerOrder | None
) -> None:
    """Set what an operator wants of a worker; None takes back what was wanted."""
    subject = topology.order_subject(worker_id)
    if order is None:
        await connection.publish(subject, b"", _DELETED)
    else:
        await connection.publish(subject, encode(order))


async def read_order(
    connection: Connection, topology: Topology, worker_id: str
) -> tuple[WorkerOrder | None, int]:
    """The order that stands for a worker, and the revision of its entry.

    Raises InvalidMessage for an entry that is no order, NotProvisioned at a bus of an older version.
    """
    stream = topology.bucket_stream(topology.settings_bucket)
    stored = await connection.get_last(stream, topology.order_subject(worker_id))
    if stored is None:
        return None, 0
    return decode(WorkerOrder, stored.data) if stored.data else None, stored.seq
