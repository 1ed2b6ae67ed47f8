"""The command that shows what an attempt has logged, or logs."""

import codecs
import contextlib
import sys
from collections.abc import AsyncGenerator
from typing import Annotated

import typer

from h2kbus.cli.artifacts import why_none
from h2kbus.cli.exits import say
from h2kbus.cli.invocation import Invocation
from h2kbus.cli.jobs import JobId, ending, outcome
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import printable
from h2kbus.errors import JobNotFound
from h2kbus.log_feed import LogFeed, LogPart
from subjects.record import JobRecord


def register(app: typer.Typer) -> None:
    """Add this module's command to the program."""
    app.command()(logs)


def logs(
    context: typer.Context,
    job_id: JobId,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="The attempt. [the last one that has a log]")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is logged, until the job ends.")
    ] = False,
) -> None:
    """Show the log of an attempt: what it did, and what its tools said.

    Logs are kept on the bus for 30 days, wherever the worker was, without secrets; of long ones the beginning
    and the end. What an attempt logs is there about a second later. --follow goes on with the next attempt,
    if there is one, and ends with the job: the exit code is 0 when it COMPLETED and 1 when it ended in
    another way. Ctrl-C leaves the job alone.
    """
    record = run_async(_logs, context.obj, job_id, attempt, follow)
    if follow:
        say(outcome(record))
        raise typer.Exit(ending(record.state))


async def _logs(invocation: Invocation, job_id: str, attempt: int | None, follow: bool) -> JobRecord:
    async with invocation.bus() as bus:
        feed = LogFeed(bus, job_id, attempt)
        shown = await _show(feed.follow() if follow else feed.so_far())
        record = feed.record or await bus.status(job_id)
    if not shown and (attempt or not follow):
        raise JobNotFound(why_none(record, attempt, "log"))
    return record


async def _show(parts: AsyncGenerator[LogPart]) -> bool:
    """Show the parts, and say whether there was any.

    They are shown as text: what is stored was written by whoever may write artifacts.
    """
    text = codecs.getincrementaldecoder("utf-8")("replace")
    shown = False
    async with contextlib.aclosing(parts):
        async for part in parts:
            if part.notice:
                say(part.notice)
                continue
            shown = True
            sys.stdout.write("\n".join(map(printable, text.decode(part.content).split("\n"))))
            sys.stdout.flush()
    return shown
