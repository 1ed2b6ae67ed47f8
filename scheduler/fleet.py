"""The live workers, as far as their heartbeats tell."""

import time
from collections.abc import Sequence
from typing import Final

import anyio

from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage
from h2kbus.fleet import read_workers
from subjects.fit import Demand, preferred, unserved
from subjects.fleet import WorkerCapabilities
from subjects.topology import Topology

KNOWN_SECONDS: Final = 5.0
"""How long a look at the fleet is good for, in seconds."""
REMEMBERED: Final = 10_000
"""How many demands are remembered; jobs mostly ask for the same."""


class FleetView:
    """A look at the fleet that is taken again when it is too old. Workers come and go: it is a hint only."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self._connection = connection
        self._topology = topology
        self._workers: Sequence[WorkerCapabilities] | None = None
        self._seen = float("-inf")
        self._unserved: dict[Demand, str | None] = {}
        self._looking = anyio.Lock()

    async def preferred(self, demand: Demand, wanted: frozenset[str]) -> Demand:
        """The demand with these capabilities on top, while somebody who takes jobs has them."""
        workers = await self._look()
        return preferred(demand, wanted, workers or ())

    async def unserved(self, demand: Demand) -> str | None:
        """Why no live worker can run a job, in words; None when one can, or when it is not known."""
        workers = await self._look()
        if workers is None:
            return None
        if demand not in self._unserved:
            if len(self._unserved) >= REMEMBERED:
                self._unserved.clear()
            self._unserved[demand] = unserved(demand, workers)
        return self._unserved[demand]

    async def _look(self) -> Sequence[WorkerCapabilities] | None:
        """The workers; None, if the fleet cannot be read."""
        if self._is_old():
            # Hundreds of commands find it too old at once: one of them looks.
            async with self._looking:
                if self._is_old():
                    await self._look_anew()
        return self._workers

    def _is_old(self) -> bool:
        return time.monotonic() - self._seen > KNOWN_SECONDS

    async def _look_anew(self) -> None:
        try:
            self._workers = await read_workers(self._connection, self._topology)
        except (BusError, InvalidMessage):
            self._workers = None
        self._unserved.clear()
        self._seen = time.monotonic()
