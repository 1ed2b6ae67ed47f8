"""What the live workers of a pool can do, as far as their heartbeats tell."""

import time
from typing import Final

from h2kbus.client import read_workers
from h2kbus.connection import Connection
from h2kbus.errors import BusError
from subjects.fleet import WorkerCapabilities
from subjects.topology import Topology

KNOWN_SECONDS: Final = 5.0
"""How long a look at the fleet is good for, in seconds."""


class FleetView:
    """Answers whether a worker has some capabilities. It is a hint only: workers come and go."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self._connection = connection
        self._topology = topology
        self._workers: list[WorkerCapabilities] = []
        self._seen = float("-inf")

    async def has(self, pool: str, tokens: frozenset[str]) -> bool:
        """Whether a worker of the pool that takes jobs has all of them; no, if the fleet cannot be read."""
        if time.monotonic() - self._seen > KNOWN_SECONDS:
            try:
                self._workers = await read_workers(self._connection, self._topology)
            except BusError:
                return False
            self._seen = time.monotonic()
        takers = (each for each in self._workers if each.pool == pool and not each.draining)
        return any(_can(each, tokens) for each in takers)


def _can(worker: WorkerCapabilities, tokens: frozenset[str]) -> bool:
    return all(worker.capabilities.get(token, False) for token in tokens)
