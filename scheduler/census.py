"""Looks at all lanes and workers from time to time, for whoever counts them."""

import logging
from typing import Final

import anyio
import msgspec

from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage
from h2kbus.fleet import read_loads, read_workers
from h2kbus.store import JobStore
from h2kbus.telemetry import FleetSeen, Observer
from subjects.topology import Topology

log = logging.getLogger("h2kbus.scheduler")

LOOK_SECONDS: Final = 15.0
"""A look reads each lane's oldest message and every heartbeat, however often metrics are scraped."""


class Census:
    """One scheduler's looks at its fleet."""

    def __init__(
        self, connection: Connection, topology: Topology, store: JobStore, observe: Observer
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._store = store
        self._observe = observe

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.run_once()
            except (BusError, InvalidMessage, KeyError) as error:
                log.warning("the fleet cannot be counted: %s", error)
            await anyio.sleep(LOOK_SECONDS)

    async def run_once(self) -> None:
        """One look. Raises BusError, InvalidMessage, and KeyError for a bucket that was deleted."""
        loads = await read_loads(self._connection, self._topology)
        workers = await read_workers(self._connection, self._topology)
        clock = await self._store.server_time()
        silent = {each.worker_id: (clock - each.last_heartbeat).total_seconds() for each in workers}
        named = tuple(msgspec.structs.replace(each, evidence={}, advice={}) for each in workers)
        self._observe(FleetSeen(tuple(loads), named, {id_: max(0.0, s) for id_, s in silent.items()}))
