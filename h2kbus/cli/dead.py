"""Commands about dead letters: messages that nobody could handle."""

from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from h2kbus.cli.exits import say
from h2kbus.cli.invocation import Invocation
from h2kbus.cli.jobs import clock, read_time
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.dead import DeadLetters, NumberedLetter
from h2kbus.errors import SettingsError

Number = Annotated[int, typer.Argument(min=1, metavar="NUMBER", help="As `dead ls` shows it.")]

commands = typer.Typer(
    name="dead", help="Look at messages that nobody could handle, and send them again.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    app.add_typer(commands)


@commands.command()
def ls(
    context: typer.Context,
    reason: Annotated[str, typer.Option(help="Only letters with this reason.")] = "*",
    job: Annotated[str, typer.Option(metavar="ID", help="Only letters about this job.")] = "*",
    since: Annotated[
        str | None, typer.Option(help="Only letters since then: a time (RFC 3339), or 30s, 15m, 2h, 7d ago.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest ones.")] = 100,
) -> None:
    """List dead letters, newest last."""
    moment = read_time(since).isoformat() if since else None
    found = run_async(_ls, context.obj, reason, job, moment, limit)
    if context.obj.json:
        for each in found:
            print_json(each)
        return
    rows = (
        (each.number, clock(each.letter.at), each.letter.reason, each.job_id, each.letter.message)
        for each in found
    )
    print_table(("NUMBER", "TIME", "REASON", "JOB", "MESSAGE"), rows)


async def _ls(
    invocation: Invocation, reason: str, job: str, since: str | None, limit: int
) -> list[NumberedLetter]:
    newest: deque[NumberedLetter] = deque(maxlen=limit)
    async with invocation.bus() as bus:
        async for each in DeadLetters(bus).read(reason=reason, job_id=job, since=since):
            newest.append(each)
    return list(newest)


@commands.command()
def show(context: typer.Context, number: Number) -> None:
    """Show a dead letter with its original message."""
    found = run_async(_show, context.obj, number)
    if context.obj.json:
        print_json(found)
        return
    letter = found.letter
    facts = {
        "reason": letter.reason,
        "message": letter.message,
        "subject": letter.subject,
        "time": clock(letter.at),
        "by": letter.by,
        "size": f"{len(letter.data)} bytes",
    }
    for name, value in facts.items():
        print_line(f"{name + ':':<11}{value}")
    print_line("")
    for line in letter.data.decode(errors="backslashreplace").splitlines():
        print_line(line)


async def _show(invocation: Invocation, number: int) -> NumberedLetter:
    async with invocation.bus() as bus:
        return await DeadLetters(bus).get(number)


@commands.command()
def requeue(
    context: typer.Context,
    numbers: Annotated[
        list[int], typer.Argument(min=1, metavar="NUMBER...", help="As `dead ls` shows them.")
    ],
    data: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Send this file in the original's place, corrected.")
    ] = None,
) -> None:
    """Send messages again, and remove their letters.

    A submission whose id is taken by now gets a new one, which is printed.
    """
    if data is not None and len(numbers) != 1:
        raise SettingsError("--data stands for one message: give one number with it")
    body = _read(data) if data else None
    for number in numbers:
        subject = run_async(_requeue, context.obj, number, body)
        if context.obj.json:
            print_json({"number": number, "subject": subject})
        else:
            print_line(subject.rsplit(".", 1)[-1])
            say(f"{number} was sent again as {subject}")


async def _requeue(invocation: Invocation, number: int, data: bytes | None) -> str:
    async with invocation.bus() as bus:
        return await DeadLetters(bus).requeue(number, data)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SettingsError(f"--data: {file} cannot be read: {error.strerror}") from None
