"""The command that shows what an attempt has logged."""

import codecs
import sys
from typing import Annotated

import typer

from h2kbus.artifacts import find, log_name, read
from h2kbus.cli.invocation import Invocation
from h2kbus.cli.jobs import JobId
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import printable
from h2kbus.errors import JobNotFound
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
) -> None:
    """Show the log of an attempt that has ended: what it did, and what its tools said.

    Logs are kept on the bus for 30 days, the end of long ones, wherever the worker was.
    """
    run_async(_logs, context.obj, job_id, attempt)


async def _logs(invocation: Invocation, job_id: str, attempt: int | None) -> None:
    async with invocation.bus() as bus:
        record = await bus.status(job_id)
        wanted = [attempt] if attempt else list(range(record.attempt, 0, -1))
        for number in wanted:
            found = await find(bus.connection, bus.topology, log_name(job_id, number))
            if found is None:
                continue
            text = codecs.getincrementaldecoder("utf-8")("replace")
            async for chunk in read(bus.connection, bus.topology, found):
                _show(text.decode(chunk))
            return
    raise JobNotFound(_why_none(record, attempt))


def _show(text: str) -> None:
    """As text: what is stored was written by whoever may write artifacts."""
    sys.stdout.write("\n".join(map(printable, text.split("\n"))))
    sys.stdout.flush()


def _why_none(record: JobRecord, attempt: int | None) -> str:
    which = f"attempt {attempt} of job {record.job_id}" if attempt else f"job {record.job_id}"
    if record.spec is not None and not record.spec.artifacts.log_upload:
        return f"{which} has no log on the bus: it was submitted with log_upload: false"
    if not record.state.terminal:
        return f"{which} has no log on the bus yet: it is stored when an attempt ends"
    return f"{which} has no log on the bus"
