"""The worker's entry in the fleet: what it can do and what it is doing, renewed by heartbeats."""

import datetime as dt
import logging
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from h2kbus.connection import Connection
from h2kbus.errors import BusError, NotProvisioned
from h2kbus.telemetry import Beaten, Observer, unobserved
from subjects.codec import encode
from subjects.fleet import WorkerCapabilities
from subjects.topology import HEARTBEAT_SECONDS, Topology

JOIN_SECONDS: Final = 0.5

log = logging.getLogger("h2kbus.worker")


class Registry:
    """Publishes heartbeats; the entry expires by itself when they stop."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        describe: Callable[[], WorkerCapabilities],
        observe: Observer = unobserved,
    ) -> None:
        self._observe = observe
        self._connection = connection
        self._topology = topology
        self._describe = describe
        self._wake = anyio.Event()

    async def beat(self) -> None:
        """One heartbeat. Raises BusError."""
        entry = msgspec.structs.replace(self._describe(), last_heartbeat=dt.datetime.now(dt.UTC))
        await self._connection.publish(self._topology.worker_subject(entry.worker_id), encode(entry))
        self._observe(Beaten(entry))

    async def join(self) -> None:
        """The first heartbeat; at a new server it waits until a scheduler has made the streams."""
        waiting = False
        while True:
            try:
                await self.beat()
            except NotProvisioned:
                if not waiting:
                    log.warning("the server has no streams yet; waiting for a scheduler to make them")
                waiting = True
                await anyio.sleep(JOIN_SECONDS)
            else:
                return

    async def run(self) -> None:
        """Beat until cancelled; a missed beat is logged and the next one follows."""
        while True:
            with anyio.move_on_after(HEARTBEAT_SECONDS):
                await self._wake.wait()
            self._wake = anyio.Event()
            try:
                await self.beat()
            except BusError as error:
                log.warning("heartbeat failed: %s", error)

    def hurry(self) -> None:
        """Beat now: the worker has changed."""
        self._wake.set()

    async def leave(self) -> None:
        """Remove the entry: a worker that was stopped properly is gone at once."""
        entry = self._describe()
        marker = {"KV-Operation": "DEL"}
        await self._connection.publish(self._topology.worker_subject(entry.worker_id), b"", marker)
