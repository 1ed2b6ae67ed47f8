"""Pulling jobs: strict priority by sweeping, and a long pull on every lane when all are empty."""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import anyio

from h2kbus.connection import Connection
from h2kbus.errors import BusError
from h2kbus.pull import Delivery, Pull, PullInbox, PullRequest
from subjects.fleet import LaneAnnouncement
from subjects.lanes import MAX_PULL_PRIORITY, lane_needs, pull_priority
from subjects.topology import PULL_GROUP, SECOND, Topology

log = logging.getLogger("h2kbus.worker")

PARK_SECONDS: Final = (20.0, 30.0)
"""Long pulls end within this range, at random, so that a fleet's pulls do not come back all at once."""
MODEST_SECONDS: Final = 60.0
"""After passing a job on, a worker stands behind all others of that lane for this long."""
FAILED_PAUSE_SECONDS: Final = 1.0
"""A lane whose long pull was refused (its consumer is gone) is left alone this long."""


class LanePuller:
    """Takes jobs from the lanes of one worker.

    Each is offered to `accept` as it comes; one that is not taken goes back at once, for another worker.
    """

    def __init__(
        self, connection: Connection, topology: Topology, accept: Callable[[Delivery], bool]
    ) -> None:
        self._inbox = PullInbox(connection, topology.jobs_stream, self._on_delivery, self._on_end)
        self._accept = accept
        self._capabilities: frozenset[str] = frozenset()
        self._lanes: tuple[LaneAnnouncement, ...] = ()
        self._consumers: frozenset[str] = frozenset()
        self._parks: dict[str, Pull] = {}
        self._resting: dict[str, float] = {}
        self._modest: dict[str, float] = {}
        self._brought = 0
        self._surplus: deque[Delivery] = deque()
        self._has_surplus = anyio.Event()
        self._wake = anyio.Event()
        self.backlog = False

    async def open(self) -> None:
        await self._inbox.open()

    def serve(self, lanes: tuple[LaneAnnouncement, ...], capabilities: frozenset[str]) -> None:
        """Pull from these lanes from now on, given most urgent first, as a worker that can do this.

        What a long pull still brings from another lane is given back.
        """
        self._lanes = lanes
        self._consumers = frozenset(lane.consumer for lane in lanes)
        self._capabilities = capabilities
        self._wake.set()

    def stand_back(self, consumer: str) -> None:
        """Let others go first on the lane that brought a job for which there was no room here."""
        self._modest[consumer] = time.monotonic() + MODEST_SECONDS

    async def fill(self, room: int) -> None:
        """Pull jobs for so many slots; returns when it has brought some, or when something has changed."""
        before = self._brought
        await self._sweep(room)
        self.backlog = self._brought - before >= room
        if self._brought == before:
            # Only what happens from here on is news: the sweep's own pulls have ended by now.
            self._wake = anyio.Event()
            await self._park()
            with anyio.move_on_after(FAILED_PAUSE_SECONDS if self._resting else PARK_SECONDS[0]):
                await self._wake.wait()

    async def give_back(self) -> None:
        """Give back what is not taken, as it comes, until cancelled.

        A long pull brings a job to a worker that has become busy meanwhile: it must not wait there.
        """
        while True:
            await self._has_surplus.wait()
            self._has_surplus = anyio.Event()
            await self._give_back_surplus()

    async def close(self) -> None:
        """Take back every pull, and give back what they have brought meanwhile."""
        await self._inbox.close()
        await self._give_back_surplus()

    async def _give_back_surplus(self) -> None:
        with anyio.CancelScope(shield=True):
            while self._surplus:
                delivery = self._surplus.popleft()
                try:
                    await delivery.nak()
                except BusError as error:
                    log.warning("%s comes again only after its ack_wait: %s", delivery.subject, error)

    async def _sweep(self, room: int) -> None:
        """Ask lane by lane, most urgent first, and stop at the first that has something."""
        before = self._brought
        for lane in self._lanes:
            request = PullRequest(batch=room, no_wait=True, group=PULL_GROUP, priority=self._priority(lane))
            pull = await self._inbox.send(lane.consumer, request)
            await pull.wait()
            if self._brought > before:
                return

    async def _park(self) -> None:
        """Leave one long pull on every lane that has none."""
        self._resting = {name: until for name, until in self._resting.items() if until > time.monotonic()}
        for lane in self._lanes:
            park = self._parks.get(lane.consumer)
            if lane.consumer in self._resting or (park is not None and not park.over):
                continue
            if park is not None and park.failed:
                self._resting[lane.consumer] = time.monotonic() + FAILED_PAUSE_SECONDS
                del self._parks[lane.consumer]
                continue
            self._parks[lane.consumer] = await self._inbox.send(lane.consumer, self._long_pull(lane))

    def _long_pull(self, lane: LaneAnnouncement) -> PullRequest:
        seconds = random.uniform(*PARK_SECONDS)  # noqa: S311 - spreads load, guards no secret
        return PullRequest(
            batch=1, expires=int(seconds * SECOND), group=PULL_GROUP, priority=self._priority(lane)
        )

    def _on_delivery(self, delivery: Delivery) -> None:
        self._brought += 1
        if delivery.consumer not in self._consumers or not self._accept(delivery):
            self._surplus.append(delivery)
            self._has_surplus.set()
        self._wake.set()

    def _on_end(self) -> None:
        self._wake.set()

    def _priority(self, lane: LaneAnnouncement) -> int:
        if self._modest.get(lane.consumer, 0.0) > time.monotonic():
            return MAX_PULL_PRIORITY
        return pull_priority(self._capabilities, lane_needs(lane.lane))
