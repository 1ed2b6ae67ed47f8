"""Lanes come into being here: a consumer for each, announced so that workers can pull from it."""

from typing import Final

import anyio

from h2kbus.connection import Connection
from h2kbus.errors import InvalidMessage
from h2kbus.fleet import read_lanes
from h2kbus.provision import ensure_consumer
from subjects.codec import encode
from subjects.fleet import LaneAnnouncement
from subjects.topology import Topology

MAX_LANES: Final = 300
"""On three replicas each consumer is a Raft group of its own; beyond this a server suffers."""

Lane = tuple[str, str, int]


class LaneRegistry:
    """Which combinations of pool, lane and priority have a consumer. Making one twice changes nothing."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self._connection = connection
        self._topology = topology
        self._known: set[Lane] = set()
        # One at a time, so that the ceiling holds; a lane is made once in a fleet's life.
        self._making = anyio.Lock()

    async def load(self) -> None:
        """Take over the lanes that exist, and mend a consumer that somebody deleted."""
        for each in await read_lanes(self._connection, self._topology):
            await self._make(each.pool, each.lane, each.priority)

    async def ensure(self, pool: str, lane: str, priority: int) -> None:
        """Make the lane's consumer and announce it, unless this process knows that it is there.

        Raises InvalidMessage above the ceiling of lanes, those of all schedulers counted.
        """
        key = (pool, lane, priority)
        if key in self._known:
            return
        async with self._making:
            if key not in self._known:
                await self._require_room(key)
                await self._make(*key)

    async def mend(self) -> list[str]:
        """Make anew what is missing of any lane, announced or known here; the names of their consumers."""
        there = await self._consumers()
        announced = {
            (each.pool, each.lane, each.priority)
            for each in await read_lanes(self._connection, self._topology)
        }
        mended = []
        for key in sorted(self._known | announced):
            name = self._topology.lane_consumer(*key).durable_name
            if name not in there or key not in announced:
                await self._make(*key)
                mended.append(name)
        return mended

    async def _consumers(self) -> set[str]:
        """The names of all consumers of the lanes, which come by the page. Raises KeyError for no stream."""
        found: set[str] = set()
        while True:
            body = {"offset": len(found)}
            page = await self._connection.api(f"CONSUMER.NAMES.{self._topology.jobs_stream}", body)
            names = page.get("consumers") or []
            found.update(names)
            if not names or len(found) >= page["total"]:
                return found

    async def _require_room(self, key: Lane) -> None:
        announced = await read_lanes(self._connection, self._topology)
        there = {(each.pool, each.lane, each.priority) for each in announced}
        if key not in there and len(there) >= MAX_LANES:
            raise InvalidMessage(f"{MAX_LANES} lanes exist already; use fewer pools or priorities", "$.pool")

    async def _make(self, pool: str, lane: str, priority: int) -> None:
        consumer = self._topology.lane_consumer(pool, lane, priority)
        await ensure_consumer(self._connection, self._topology.jobs_stream, consumer)
        announcement = LaneAnnouncement(
            pool=pool, lane=lane, priority=priority, consumer=consumer.durable_name
        )
        await self._connection.publish(
            self._topology.lane_subject(pool, lane, priority), encode(announcement)
        )
        self._known.add((pool, lane, priority))
