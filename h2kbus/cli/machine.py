"""Commands about this machine and this program: doctor, schema, demo, bench."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from h2kbus.cli.exits import Exit, say
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.errors import SettingsError


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (doctor, schema, demo, bench):
        app.command()(command)


def doctor(
    context: typer.Context,
    security: Annotated[bool, typer.Option("--security", help="Say which doors stand open instead.")] = False,
) -> None:
    """Say what is missing, and what mends it.

    Looks at this machine and at the server; with --security at its live workers too. The exit code is 1
    when something is missing that the built-in operations need, or when a door stands open.
    """
    from h2kbus.cli.doctor import examine
    from h2kbus.cli.security import examine_security

    checks = run_async(examine_security if security else examine, context.obj.settings())
    if context.obj.json:
        for check in checks:
            print_json(check)
    else:
        rows = ((check.subject, check.verdict, check.evidence, check.mend) for check in checks)
        print_table(("CHECK", "VERDICT", "EVIDENCE", "TO MEND IT"), rows)
    if any(check.verdict in {"missing", "off"} for check in checks):
        raise typer.Exit(Exit.JOB_FAILED)


def schema(
    context: typer.Context,
    output: Annotated[Path | None, typer.Option(help="Write the files into this directory.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print one of them.")] = None,
) -> None:
    """Show the schemas of the wire contract.

    JSON Schemas of every message, and an AsyncAPI 3 document.
    """
    from subjects.reference import documents

    files = documents()
    if output is not None:
        write_files(files, output)
        say(f"{len(files)} files written to {output}")
    elif name is not None:
        sys.stdout.write(_named(files, name))
    elif context.obj.json:
        for each in sorted(files):
            print_json({"name": each})
    else:
        for each in sorted(files):
            print_line(each)


def demo(
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where the disks go [a new temporary directory].")
    ] = None,
) -> None:
    """Convert a real disk over a real bus."""
    from h2kbus.cli.demo import show

    raise typer.Exit(run_async(show, directory))


def bench(
    context: typer.Context,
    only: Annotated[
        str | None,
        typer.Option(help="One part: pipeline, latency, depth, history, durability, convert or memory."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=10, help="Jobs that a part runs, queues or keeps [each part's own].")
    ] = None,
    convert_size: Annotated[int, typer.Option(min=8, help="MiB of the disks that are converted.")] = 64,
    convert_rounds: Annotated[int, typer.Option(min=1, help="Conversions of each kind.")] = 3,
) -> None:
    """Measure the bus, and print the ratios.

    Beside what it is compared with, in one run.
    """
    from h2kbus.cli.bench import PARTS, measure, report

    if only is not None and only not in PARTS:
        raise SettingsError(f"--only {only!r}: choose one of {', '.join(PARTS)}")
    parts = [only] if only else list(PARTS)
    figures = run_async(partial(measure, conversions=(convert_size, convert_rounds)), parts, jobs)
    if context.obj.json:
        print_json(figures)
    else:
        report(figures)


def write_files(files: dict[str, str], directory: Path) -> None:
    """Write each text under its name. Raises SettingsError where that is not possible."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--output {directory}: {error.strerror}") from None


def _named(files: dict[str, str], name: str) -> str:
    for known, text in files.items():
        if name in (known, known.removesuffix(".json"), known.removesuffix(".schema.json")):
            return text
    raise SettingsError(f"there is no schema {name!r}; known: {', '.join(sorted(files))}")
