"""Following jobs to their end: live bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import anyio
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from h2kbus.cli.output import printable
from h2kbus.cli.rate import Mark, in_bytes
from h2kbus.client import Bus
from subjects.events import ProgressEvent
from subjects.record import JobRecord
from subjects.states import State

WIDE: Final = 100
NARROW: Final = 60
"""Terminals of fewer columns than this show no words beside the bars."""
MAX_BARS: Final = 8
"""With more jobs than this a single bar counts the finished ones."""


class View(Protocol):
    """Shows events as they come."""

    def show(self, event: ProgressEvent) -> None: ...


class Lines:
    """One line on stderr for each event; used where stderr is no terminal."""

    def show(self, event: ProgressEvent) -> None:
        sys.stderr.write(f"{describe(event)}\n")
        sys.stderr.flush()


class Bars:
    """One bar for each job; with `phases`, one for each of its phases below that of the whole job."""

    def __init__(self, progress: Progress, *, phases: bool) -> None:
        self._progress = progress
        self._phases = phases
        self._bars: dict[str, TaskID] = {}
        self._marks: dict[str, Mark] = {}

    def show(self, event: ProgressEvent) -> None:
        before = self._marks.get(event.job_id, Mark("", None, 0.0))
        mark = self._marks[event.job_id] = before.moved(event)
        if before.phase != event.phase and event.state in (State.PROGRESSING, State.COMPLETED):
            self._finish_phase(event.job_id, before.phase)
        if self._phases and event.state is State.PROGRESSING:
            name = f"{event.job_id} {event.phase}"
            self._update(name, f"  {printable(event.phase)}", event.phase_percent, printable(event.message))
        words = what_happens(event) + (f" {in_bytes(mark.rate)}/s" if mark.rate else "")
        self._update(event.job_id, event.job_id, event.progress_percent, words)

    def _finish_phase(self, job_id: str, phase: str) -> None:
        bar = self._bars.get(f"{job_id} {phase}")
        if bar is not None:
            self._progress.update(bar, total=100, completed=100)

    def _update(self, key: str, label: str, percent: float | None, words: str) -> None:
        """Show a bar; one of which nobody says how far it is has no percent."""
        total = None if percent is None else 100
        if key not in self._bars:
            self._bars[key] = self._progress.add_task("", total=total, job=label, words=words)
        self._progress.update(self._bars[key], total=total, completed=percent or 0, words=words)


@contextlib.contextmanager
def live_view(*, phases: bool = False) -> Iterator[View]:
    """Bars on a terminal, lines elsewhere; the terminal is left as it was found."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    with Progress(*columns_for(console.width), console=console) as progress:
        yield Bars(progress, phases=phases)


def columns_for(width: int) -> tuple[ProgressColumn, ...]:
    """What fits a terminal of so many columns: the words give way first, then the time, then the bar."""
    cut = Column(no_wrap=True, overflow="ellipsis")
    bar = BarColumn(bar_width=30 if width >= WIDE else 10)
    found: list[ProgressColumn] = [
        TextColumn("{task.fields[job]}", table_column=cut, markup=False),
        bar,
        TaskProgressColumn(),
    ]
    if width >= NARROW:
        found += [TimeElapsedColumn(), TextColumn("{task.fields[words]}", table_column=cut, markup=False)]
    return tuple(found)


async def follow(bus: Bus, job_ids: Sequence[str]) -> list[JobRecord]:
    """Show the jobs until all have ended; their final records, in the order given."""
    if len(job_ids) > MAX_BARS:
        return await _follow_many(bus, job_ids)
    with live_view(phases=len(job_ids) == 1) as view:
        async with anyio.create_task_group() as group:
            for job_id in job_ids:
                group.start_soon(_show, bus, job_id, view)
    return [await bus.status(job_id) for job_id in job_ids]


async def _show(bus: Bus, job_id: str, view: View) -> None:
    async for event in bus.watch(job_id):
        view.show(event)


async def _follow_many(bus: Bus, job_ids: Sequence[str]) -> list[JobRecord]:
    """One bar for all of them, which counts their ends."""
    ended: dict[str, JobRecord] = {}
    counts: Counter[State] = Counter()
    console = Console(stderr=True)
    columns = (
        BarColumn(bar_width=30 if console.width >= WIDE else 10),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    words = TextColumn("{task.description}")
    with Progress(*columns, words, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("jobs", total=len(job_ids))
        async for record in bus.results(job_ids):
            ended[record.job_id] = record
            counts[record.state] += 1
            said = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
            progress.update(bar, completed=len(ended), description=said)
    return [ended[job_id] for job_id in job_ids]


def describe(event: ProgressEvent) -> str:
    """One event as one line."""
    moment = event.timestamp.astimezone().strftime("%H:%M:%S")
    words = what_happens(event)
    return f"{moment}  {event.job_id}  {event.state:<11} {event.progress_percent:5.1f} %  {words}"


def what_happens(event: ProgressEvent) -> str:
    """Phase, message, and how much is left where that is known."""
    words = [printable(event.phase), printable(event.message)]
    if event.bytes_total:
        done = event.bytes_done or 0
        words.append(f"({in_bytes(done)} of {in_bytes(event.bytes_total)})")
    if event.eta_seconds:
        words.append(f"{event.eta_seconds:.0f} s left")
    return " ".join(each for each in words if each)
