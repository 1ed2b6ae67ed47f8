"""Which lanes this worker serves: those in its pool whose needs it meets, most urgent first.

Lanes are joined and left as its capabilities come and go.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final

import anyio
from nats.aio.msg import Msg

from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage
from h2kbus.fleet import read_lanes
from subjects.codec import decode
from subjects.fleet import LaneAnnouncement
from subjects.lanes import lane_needs
from subjects.topology import Topology

log = logging.getLogger("h2kbus.worker")

REFRESH_SECONDS: Final = 15.0
"""Announcements are heard at once; the bucket is read this often, in case one was missed."""


class LaneWatch:
    """Keeps the list of lanes; `on_change` is called when it has changed."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        pool: str,
        on_change: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._pool = pool
        self._capabilities: frozenset[str] = frozenset()
        self._on_change = on_change
        self._known: dict[str, LaneAnnouncement] = {}
        self.lanes: tuple[LaneAnnouncement, ...] = ()

    def set_capabilities(self, capabilities: frozenset[str]) -> None:
        """Serve what a worker can that has these, from now on."""
        self._capabilities = capabilities
        self._choose()

    async def run(self) -> None:
        """Follow the announcements until cancelled."""
        subscription = await self._connection.listen(
            f"$KV.{self._topology.lanes_bucket}.>", self._on_announcement
        )
        try:
            while True:
                await self._refresh()
                await anyio.sleep(REFRESH_SECONDS)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await subscription.unsubscribe()

    async def _refresh(self) -> None:
        try:
            self._learn(await read_lanes(self._connection, self._topology))
        except BusError as error:
            log.warning("cannot read the lanes: %s", error)

    def _on_announcement(self, message: Msg) -> None:
        """Take the lane from the message itself: it is heard before it is stored and can be read."""
        try:
            self._learn([decode(LaneAnnouncement, message.data)])
        except InvalidMessage as error:
            log.warning("%s is no lane announcement: %s", message.subject, error)

    def _learn(self, announced: Iterable[LaneAnnouncement]) -> None:
        """Add lanes; no announcement is ever taken back."""
        self._known |= {lane.consumer: lane for lane in announced if lane.pool == self._pool}
        self._choose()

    def _choose(self) -> None:
        served = [lane for lane in self._known.values() if lane_needs(lane.lane) <= self._capabilities]
        lanes = tuple(sorted(served, key=lambda lane: (lane.priority, lane.lane)))
        if lanes != self.lanes:
            self.lanes = lanes
            self._on_change()
