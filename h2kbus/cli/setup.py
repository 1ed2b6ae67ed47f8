"""The command that makes and changes a bus's streams."""

from typing import Annotated, Final

import anyio
import typer

from h2kbus.cli.invocation import Invocation
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_table
from h2kbus.connection import Connection
from h2kbus.errors import BusError, BusTimeout
from h2kbus.provision import provision
from h2kbus.replicas import Copies, wait_for_copies
from subjects.grammar import Grammar
from subjects.topology import Topology

AGAIN_SECONDS: Final = 0.5
# JetStream is not available yet, or its cluster has no leader yet.
_NOT_YET: Final = frozenset({10008, 10009})


def register(app: typer.Typer) -> None:
    """Add this module's command to the program."""
    app.command()(setup)


def setup(
    context: typer.Context,
    replicas: Annotated[
        int, typer.Option(min=1, max=5, help="Copies of each stream, on a cluster; more than there are.")
    ] = 1,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for a cluster and its copies.")
    ] = 120.0,
) -> None:
    """Make the streams and buckets of a bus, or give them more copies.

    Jobs go on meanwhile, and none is lost. A scheduler makes what is missing by itself; this is for a bus
    that is to be ready before it has one, and for a cluster whose streams have too few copies.
    """
    found, changed = run_async(_setup, context.obj, replicas, timeout)
    if context.obj.json:
        for each in found:
            print_json(each)
        return
    rows = (
        (each.name, f"{each.current}/{each.wanted}", each.messages, _changed(each, changed)) for each in found
    )
    print_table(("STREAM > CONSUMER", "COPIES", "MESSAGES", "CHANGED"), rows)


async def _setup(invocation: Invocation, replicas: int, timeout: float) -> tuple[list[Copies], list[str]]:
    async with invocation.bus() as bus:
        topology = Topology(Grammar(invocation.settings().root), replicas)
        changed = await _provisioned(bus.connection, topology, timeout)
        return await wait_for_copies(bus.connection, topology, timeout), changed


async def _provisioned(connection: Connection, topology: Topology, seconds: float) -> list[str]:
    """A cluster that has just started takes a while until it makes streams."""
    until = anyio.current_time() + seconds
    while True:
        try:
            return await provision(connection, topology)
        except BusError as error:
            starting = isinstance(error, BusTimeout) or error.details.get("err_code") in _NOT_YET
            if not starting or anyio.current_time() > until:
                raise
            await anyio.sleep(AGAIN_SECONDS)


def _changed(copies: Copies, changed: list[str]) -> str:
    return "yes" if copies.consumer is None and copies.stream in changed else "-"
