"""`h2kbus top`: the whole fleet on one screen, live, with a few keys to steer it."""

from typing import Annotated

import typer

from h2kbus.cli.loop import run as run_async


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(top)


def top(
    context: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Show it once and end, as without a terminal.")
    ] = False,
    words: Annotated[
        str,
        typer.Option("--filter", help="Only running jobs in whose id, worker, operation or image this is."),
    ] = "",
) -> None:
    r"""Watch the fleet live.

    Running jobs with their bars and rates, lanes, workers, and the last ends.

    \b
      ↑ ↓   choose a job
      c     cancel it
      l     show its log, and go back
      /     filter the running jobs
      q     quit

    Without a terminal, or with --once, it is shown once; with --json as one object.
    """
    from h2kbus.cli.top.desk import show

    run_async(show, context.obj, once, words)
