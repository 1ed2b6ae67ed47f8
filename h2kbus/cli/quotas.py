"""Commands about quotas: how much each submitter may have on the bus."""

import datetime as dt
import re
from typing import Annotated, Any, Final

import typer

from h2kbus.cli.invocation import Invocation
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.errors import SettingsError
from h2kbus.quotas import Quotas, read_quotas, set_quota
from subjects.codec import convert
from subjects.quota import Quota

_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (quotas, quota):
        app.command()(command)


def quotas(context: typer.Context) -> None:
    """List the quotas that are set."""
    found = run_async(_quotas, context.obj)
    if context.obj.json:
        for name, each in sorted(found.by_name.items()):
            print_json({"submitter": name, **_told(each)})
        return
    rows = ((name, *map(_shown, _told(each).values())) for name, each in sorted(found.by_name.items()))
    print_table(("SUBMITTER", "QUEUED", "BYTES", "RATE"), rows)


async def _quotas(invocation: Invocation) -> Quotas:
    async with invocation.bus() as bus:
        return await read_quotas(bus.connection, bus.topology)


def quota(
    context: typer.Context,
    submitter: Annotated[str, typer.Argument(help="A submitter's name; * for all who have no own quota.")],
    queued: Annotated[
        int | None, typer.Option(min=0, help="How many jobs that have not ended it may have.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--bytes", help="How many bytes those may have: 500k, 100M, 2G.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="How many commands a second it may send, over a minute.")
    ] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="Let it have what it likes.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Take its quota back.")] = False,
) -> None:
    """Set what a submitter may have on the bus, in the place of what was set for it before.

    What is more is refused with QUOTA_EXCEEDED. Jobs that are there already stay.
    """
    limits = {"queued": queued, "bytes": read_size(size) if size else None, "rate": rate}
    given = {name: each for name, each in limits.items() if each is not None}
    if sum((bool(given), unlimited, clear)) != 1:
        raise SettingsError("give what is allowed, or --unlimited, or --clear")
    run_async(_quota, context.obj, submitter, None if clear else given)
    words = " ".join(f"{name} {_shown(each)}" for name, each in given.items())
    print_line(f"{submitter}: {'no quota' if clear else words or 'unlimited'}")


async def _quota(invocation: Invocation, submitter: str, given: dict[str, Any] | None) -> None:
    async with invocation.bus() as bus:
        wanted = None
        if given is not None:
            now = dt.datetime.now(dt.UTC)
            wanted = convert(Quota, {**given, "by": bus.submitter, "at": now})
        await set_quota(bus.connection, bus.topology, submitter, wanted)


def read_size(text: str) -> int:
    """Bytes, with a unit that is a power of ten. Raises SettingsError."""
    found = re.fullmatch(r"(\d{1,15})([kMG]?)", text)
    if found is None:
        raise SettingsError(f"--bytes {text!r}: write it like 500k, 100M or 2G")
    return int(found[1]) * _UNITS[found[2]]


def _told(each: Quota) -> dict[str, Any]:
    return {"queued": each.queued, "bytes": each.bytes, "rate": each.rate}


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.15g}"
