"""What operators want of this worker: heard at once, and read again in case something was missed."""

import contextlib
import logging
from collections.abc import Callable
from typing import Final

import anyio
from nats.aio.msg import Msg

from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage
from h2kbus.fleet import read_order
from subjects.codec import decode
from subjects.fleet import WorkerOrder
from subjects.topology import HEARTBEAT_SECONDS, Topology

log = logging.getLogger("h2kbus.worker")

LEAVE_SECONDS: Final = 2.0


class Orders:
    """Follows the orders for one worker; `on_order` gets each, and None when one is taken back."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        worker_id: str,
        on_order: Callable[[WorkerOrder | None], None],
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._worker_id = worker_id
        self._on_order = on_order
        self._subject = topology.order_subject(worker_id)
        self._joined: int | None = None

    async def run(self) -> None:
        """Follow them until cancelled."""
        subscription = await self._connection.listen(self._subject, self._on_message)
        try:
            while True:
                await anyio.sleep(HEARTBEAT_SECONDS)
                await self.read()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_SECONDS):
                await subscription.unsubscribe()

    async def read(self) -> None:
        """Read the order that stands.

        A drain that was ordered before the first reading was meant for a worker that had this name before.
        """
        try:
            order, revision = await read_order(self._connection, self._topology, self._worker_id)
        except (BusError, InvalidMessage) as error:
            log.warning("cannot read the orders for this worker: %s", error)
            return
        if self._joined is None:
            self._joined = revision
        stale = order is not None and order.order == "drain" and revision <= self._joined
        self._on_order(None if stale else order)

    def _on_message(self, message: Msg) -> None:
        """Take the order from the message itself: it is heard before it is stored and can be read.

        A consumer can have the server deliver a message here that somebody said under another subject.
        """
        if message.subject != self._subject:
            return
        with contextlib.suppress(InvalidMessage):
            self._on_order(decode(WorkerOrder, message.data) if message.data else None)
