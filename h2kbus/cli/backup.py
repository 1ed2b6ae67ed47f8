"""The commands that take a bus along: into files, and out of them on another server or cluster."""

from pathlib import Path
from typing import Annotated

import typer

from h2kbus.backup import StoredStream, back_up, restore
from h2kbus.cli.exits import say
from h2kbus.cli.invocation import Invocation
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_table
from h2kbus.connection import connect
from subjects.grammar import Grammar
from subjects.topology import Topology


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    app.command("backup")(backup_command)
    app.command("restore")(restore_command)


def backup_command(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Where to write; it is made.")],
) -> None:
    """Write all streams and buckets of a bus into files, while it goes on.

    To move a bus to another server, end its workers and schedulers first: what happens after the backup is
    not in it. Its files are those of `nats stream backup`.
    """
    found, at_work = run_async(_back_up, context.obj, directory)
    _show(context.obj, found)
    if at_work:
        say(f"workers at work: {at_work}; what they do from now on is not in the backup")


def restore_command(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="What `h2kbus backup` wrote.")],
    replicas: Annotated[
        int | None, typer.Option(min=1, max=5, help="Copies of each stream, on a cluster. [as they were]")
    ] = None,
) -> None:
    """Make a bus of a backup, on a server or cluster where no scheduler has been yet.

    Jobs that waited go on waiting, and those that ran are taken back when their leases are over.
    """
    _show(context.obj, run_async(_restore, context.obj, directory, replicas))


async def _back_up(invocation: Invocation, directory: Path) -> tuple[list[StoredStream], int]:
    async with invocation.bus() as bus:
        found = [each async for each in back_up(bus.connection, bus.topology, directory)]
        return found, len(await bus.workers())


async def _restore(invocation: Invocation, directory: Path, replicas: int | None) -> list[StoredStream]:
    settings = invocation.settings()
    topology = Topology(Grammar(settings.root))
    async with connect(settings) as connection:
        return [each async for each in restore(connection, topology, directory, replicas)]


def _show(invocation: Invocation, found: list[StoredStream]) -> None:
    if invocation.json:
        for each in found:
            print_json(each)
        return
    rows = ((each.stream, each.messages, each.consumers, each.size_bytes) for each in found)
    print_table(("STREAM", "MESSAGES", "CONSUMERS", "BYTES"), rows)
