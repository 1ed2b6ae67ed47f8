"""Makes anew what somebody deleted from the server while the fleet runs."""

import logging
from typing import Final

import anyio

from h2kbus.connection import Connection
from h2kbus.errors import BusError, ContractConflict
from h2kbus.provision import provision
from scheduler.lanes import LaneRegistry
from subjects.topology import Topology

log = logging.getLogger("h2kbus.scheduler")

MEND_SECONDS: Final = 5.0


class Mending:
    """Holds the server against the declared topology, again and again."""

    def __init__(self, connection: Connection, topology: Topology, lanes: LaneRegistry) -> None:
        self._connection = connection
        self._topology = topology
        self._lanes = lanes

    async def run(self) -> None:
        """Look until cancelled. Raises ContractConflict: a stream was changed, and somebody has to decide."""
        while True:
            await anyio.sleep(MEND_SECONDS)
            try:
                await self.run_once()
            except ContractConflict:
                raise
            except (BusError, KeyError) as error:
                log.warning("the server's streams cannot be looked at: %s", error)

    async def run_once(self) -> None:
        """Make what is missing. Raises BusError, ContractConflict."""
        for name in await provision(self._connection, self._topology):
            log.error("stream %s had vanished with what was in it; it was made anew", name)
        for name in await self._lanes.mend():
            log.error("consumer %s had vanished; it was made anew", name)
