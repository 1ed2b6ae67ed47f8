"""Commands about named limits: how many jobs with one label may run at once."""

from typing import Annotated

import typer

from h2kbus.cli.invocation import Invocation
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.errors import SettingsError
from h2kbus.limits import LimitUse


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (limits, limit):
        app.command()(command)


def limits(context: typer.Context) -> None:
    """List the named limits, and the jobs that have a place under them."""
    found = run_async(_limits, context.obj)
    if context.obj.json:
        for each in found:
            print_json(each)
        return
    rows = ((each.label, each.ceiling or "-", len(each.jobs), " ".join(each.jobs) or "-") for each in found)
    print_table(("LABEL", "CEILING", "HELD", "JOBS"), rows)


async def _limits(invocation: Invocation) -> list[LimitUse]:
    async with invocation.bus() as bus:
        return await bus.limits()


def limit(
    context: typer.Context,
    label: Annotated[str, typer.Argument(help="What the jobs share: source-host/esx-07, for instance.")],
    at_most: Annotated[
        int | None, typer.Argument(min=1, max=1000, help="How many jobs with the label may run at once.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take the ceiling back.")] = False,
) -> None:
    """Set the ceiling of a limit, whatever the jobs themselves ask for.

    Jobs that have a place keep it until they have ended.
    """
    if (at_most is None) != clear:
        raise SettingsError("give either a number or --clear")
    run_async(_limit, context.obj, label, at_most)
    print_line(f"{label}: no ceiling" if clear else f"{label}: at most {at_most} at once")


async def _limit(invocation: Invocation, label: str, at_most: int | None) -> None:
    async with invocation.bus() as bus:
        await bus.set_ceiling(label, at_most)
