"""How services of this program run: side by side, until a signal drains them or their bus is gone."""

import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import anyio
from anyio.abc import TaskStatus

from h2kbus.cli.exits import say
from h2kbus.connection import Connection
from h2kbus.errors import BusUnreachable
from h2kbus.telemetry import Observer, Reconnected, unobserved

Drain = Callable[[], None]
Service = Callable[..., Coroutine[Any, Any, None]]
"""Runs until drained; it tells its `task_status` how to drain it, once it is ready."""


async def serve(services: Sequence[Service], announce: Callable[[], None]) -> None:
    """Run services until a signal drains them; a second signal ends them at once."""
    drains: list[Drain] = []
    async with anyio.create_task_group() as outer:
        await outer.start(_drain_on_signal, drains, len(services), outer.cancel_scope)
        async with anyio.create_task_group() as group:
            for service in services:
                drain: Drain = await group.start(service)
                drains.append(drain)
            announce()
        outer.cancel_scope.cancel()


async def _drain_on_signal(
    drains: list[Drain], expected: int, everything: anyio.CancelScope, *, task_status: TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        await anext(signals)
        if len(drains) < expected:
            everything.cancel()
        say("draining; a second signal ends it at once")
        for drain in drains:
            drain()
        await anext(signals)
        everything.cancel()


@contextlib.asynccontextmanager
async def while_connected(connection: Connection, observe: Observer = unobserved) -> AsyncIterator[None]:
    """End what runs inside when the connection is closed for good, which reconnecting never does.

    `observe` hears of each time that the connection comes back.
    """
    connection.on_reconnect.append(lambda: observe(Reconnected()))
    async with anyio.create_task_group() as group:
        group.start_soon(_fail_when_closed, connection)
        yield
        group.cancel_scope.cancel()


async def _fail_when_closed(connection: Connection) -> None:
    await connection.closed.wait()
    raise BusUnreachable("the server closed the connection for good")
