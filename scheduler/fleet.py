"""The live workers, as far as their heartbeats tell."""

import time
from collections.abc import Sequence
from typing import Final

from h2kbus.client import read_workers
from h2kbus.connection import Connection
from h2kbus.errors import BusError
from subjects.fleet import WorkerCapabilities
from subjects.topology import Topology

KNOWN_SECONDS: Final = 5.0
"""How long a look at the fleet is good for, in seconds."""


class FleetView:
    """A look at the fleet that is taken again when it is too old. Workers come and go: it is a hint only."""

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self._connection = connection
        self._topology = topology
        self._workers: list[WorkerCapabilities] = []
        self._seen = float("-inf")

    async def workers(self) -> Sequence[WorkerCapabilities]:
        """The live workers; none, if the fleet cannot be read."""
        if time.monotonic() - self._seen > KNOWN_SECONDS:
            try:
                self._workers = await read_workers(self._connection, self._topology)
            except BusError:
                return ()
            self._seen = time.monotonic()
        return self._workers
