"""`python -m tests.security.fuzz`: a campaign of mutated images of any size, from a seed."""

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import anyio
import typer

from tests.security.fuzz.campaign import Plan, Report, fill, summary


def main(
    seed: Annotated[int, typer.Option(help="The same seed draws the same mutants.")] = 7,
    mutants: Annotated[int, typer.Option(min=1)] = 10_000,
    first: Annotated[int, typer.Option(min=0, help="The number of the first mutant.")] = 0,
    limit: Annotated[float, typer.Option(min=1, help="Seconds that one attempt may take.")] = 20.0,
    keep: Annotated[Path | None, typer.Option(help="Where to work, and leave everything behind.")] = None,
) -> None:
    """Put mutated images through inspect and convert. Exit code 1 when a promise was broken.

    Ctrl-C ends it with what was found so far.
    """
    report = Report(plan=Plan(seed=seed, mutants=mutants, first=first, limit=limit))

    def say(words: str) -> None:
        sys.stderr.write(f"{words}\n")

    with (
        tempfile.TemporaryDirectory(prefix="h2kbus-fuzz-", ignore_cleanup_errors=True) as temporary,
        contextlib.suppress(KeyboardInterrupt),
    ):
        anyio.run(lambda: fill(report, keep or Path(temporary) / "campaign", say=say))
    sys.stdout.write(summary(report))
    raise typer.Exit(1 if report.violations else 0)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
