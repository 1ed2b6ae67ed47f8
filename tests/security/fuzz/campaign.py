"""A campaign: many mutants, each through every operation, all drawn from one seed."""

import faulthandler
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from tests.security.fuzz.attempt import Arena, Task, Verdict, tasks
from tests.security.fuzz.corpus import Seed, seeds
from tests.security.fuzz.mutations import Mutant, mutate

STUCK_FACTOR: Final = 6
"""After so many limits the whole process is stuck: it says where, and ends."""

_TOLD_EVERY: Final = 500


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `limit` is the wall time of one attempt, in seconds. A mutant is known by its number."""

    seed: int = 7
    mutants: int = 150
    first: int = 0
    limit: float = 20.0


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """A promise that a mutant saw broken. `--first N --mutants 1` repeats it, under the same seed."""

    promise: str
    mutant: int
    what: str
    detail: str


class Report(msgspec.Struct, kw_only=True):
    """What came of it. `outcomes` counts attempts by operation and outcome, `slowest` is in seconds."""

    plan: Plan
    mutants: int = 0
    seconds: float = 0.0
    outcomes: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    damage: Counter[str] = msgspec.field(default_factory=Counter)
    slowest: tuple[float, int, str] = (0.0, -1, "")
    violations: list[Violation] = msgspec.field(default_factory=list)

    def add(self, number: int, what: str, task: Task, verdict: Verdict) -> None:
        """Take one attempt's verdict in."""
        self.outcomes[task.operation, verdict.outcome] += 1
        words = f"{task.operation} of {what}"
        self.slowest = max(self.slowest, (verdict.seconds, number, words))
        self.violations += [
            Violation(promise=promise, mutant=number, what=words, detail=detail)
            for promise, detail in verdict.broken
        ]


async def run(plan: Plan, place: Path, *, say: Callable[[str], None] = lambda _: None) -> Report:
    """Run a campaign in a directory that does not exist yet."""
    report = Report(plan=plan)
    await fill(report, place, say=say)
    return report


async def fill(report: Report, place: Path, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Like `run`, into a report that can be read at any time."""
    plan, made = report.plan, place / "seeds"
    made.mkdir(parents=True)
    corpus = seeds(made)
    arena, began = Arena(place / "arena"), time.monotonic()
    for number in range(plan.first, plan.first + plan.mutants):
        faulthandler.dump_traceback_later(STUCK_FACTOR * plan.limit, exit=True)
        await _one(number, corpus, arena, report)
        report.mutants += 1
        report.seconds = time.monotonic() - began
        if report.mutants % _TOLD_EVERY == 0:
            say(f"{report.mutants} mutants in {report.seconds:.0f} s, {len(report.violations)} violations")
    faulthandler.cancel_dump_traceback_later()


async def _one(number: int, corpus: list[Seed], arena: Arena, report: Report) -> None:
    rng = random.Random(f"{report.plan.seed}:{number}")
    seed = rng.choice(corpus)
    files, applied = mutate(rng, Mutant(seed, corpus, str(arena.outside)))
    report.damage.update(applied)
    arena.lay_out(files)
    for task in tasks(rng, seed):
        verdict = await arena.attempt(seed, task, report.plan.limit)
        report.add(number, f"{seed.name} after {', '.join(applied)}", task, verdict)


def summary(report: Report) -> str:
    """The report for people."""
    seconds, number, words = report.slowest
    lines = [
        f"seed {report.plan.seed}: {report.mutants} mutants in {report.seconds:.0f} s",
        "  damage: " + ", ".join(f"{count} x {kind}" for kind, count in sorted(report.damage.items())),
        *(f"  {count:6} x {each[0]}: {each[1]}" for each, count in sorted(report.outcomes.items())),
        f"  slowest: {seconds:.1f} s, mutant {number}, {words}",
        f"  violations: {len(report.violations)}",
        *(
            f"    {each.promise}: mutant {each.mutant}, {each.what}: {each.detail}"
            for each in report.violations[:50]
        ),
    ]
    return "\n".join(lines) + "\n"
