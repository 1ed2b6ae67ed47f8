"""`python -m tests.chaos`: a campaign of any size, from a seed."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import anyio
import typer

from tests.chaos.campaign import Plan, Report, run
from tests.chaos.cluster import FAKETIME
from tests.chaos.nemesis import FAULTS


def main(
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same jobs and draws the same faults.")
    ] = 7,
    jobs: Annotated[int, typer.Option(min=1)] = 10_000,
    faults: Annotated[int, typer.Option(min=0)] = 450,
    lease: Annotated[float, typer.Option(min=3)] = 4.0,
    workers: Annotated[int, typer.Option(min=1)] = 3,
    every: Annotated[float, typer.Option(help="Seconds between two faults, on average.")] = 1.6,
    kind: Annotated[list[str], typer.Option(help="Only these kinds of faults.")] = [],  # noqa: B006
    variant: Annotated[str, typer.Option(help="A variant that is broken on purpose.")] = "sound",
    keep: Annotated[Path | None, typer.Option(help="Where to work, and leave everything behind.")] = None,
) -> None:
    """Run a fault campaign. Exit code 1 when a promise was broken."""
    if FAKETIME is None:
        sys.stderr.write("libfaketime is not installed: no clock will be stepped\n")
    plan = Plan(
        seed=seed, jobs=jobs, faults=faults, lease=lease, workers=workers, every=every,
        kinds=tuple(kind) or tuple(FAULTS), variant=variant,
    )  # fmt: skip

    def say(words: str) -> None:
        sys.stderr.write(f"{words}\n")

    with tempfile.TemporaryDirectory(prefix="h2kbus-chaos-", ignore_cleanup_errors=True) as temporary:
        report = anyio.run(lambda: run(plan, keep or Path(temporary), say=say))
    sys.stdout.write(summary(report))
    raise typer.Exit(1 if report.violations else 0)


def summary(report: Report) -> str:
    """The report for people."""
    plan = report.plan
    ended = ", ".join(f"{count} {state}" for state, count in sorted(report.ended.items()))
    kinds = len(report.faults)
    lines = [
        f"seed {plan.seed}, lease {plan.lease:g} s, {plan.workers} workers: {report.seconds:.0f} s",
        f"  {plan.jobs} jobs: {ended}; {report.executions} executions",
        f"  {plan.faults} faults of {kinds} kinds:",
        *(f"  {count:5} x {kind}" for kind, count in sorted(report.faults.items())),
        f"  recovery after a worker's kill -9: {_spread(report.after_kill)}",
        f"  recovery after the server's return: {_spread(report.after_server)}",
        f"  violations: {len(report.violations)}",
        *(f"    {each.promise}: {each.job_id} {each.detail}" for each in report.violations[:50]),
    ]
    return "\n".join(lines) + "\n"


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "none seen"
    ordered = sorted(seconds)
    middle = ordered[len(ordered) // 2]
    return f"{len(ordered)} seen, median {middle:.1f} s, longest {ordered[-1]:.1f} s"


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
