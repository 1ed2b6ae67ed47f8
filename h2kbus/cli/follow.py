"""Following jobs to their end: live bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import anyio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from h2kbus.cli.output import printable
from h2kbus.client import Bus
from subjects.events import ProgressEvent
from subjects.record import JobRecord

MAX_BARS: Final = 8
"""With more jobs than this a single bar counts the finished ones."""
_GIB: Final = 1 << 30


class View(Protocol):
    """Shows events as they come."""

    def show(self, event: ProgressEvent) -> None: ...


class Lines:
    """One line on stderr for each event; used where stderr is no terminal."""

    def show(self, event: ProgressEvent) -> None:
        sys.stderr.write(f"{describe(event)}\n")
        sys.stderr.flush()


class Bars:
    """One bar for each job."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def show(self, event: ProgressEvent) -> None:
        words = what_happens(event)
        if event.job_id not in self._bars:
            self._bars[event.job_id] = self._progress.add_task("", total=100, job=event.job_id, words=words)
        self._progress.update(self._bars[event.job_id], completed=event.progress_percent, words=words)


@contextlib.contextmanager
def live_view() -> Iterator[View]:
    """Bars on a terminal, lines elsewhere; the terminal is left as it was found."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.fields[job]}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


async def follow(bus: Bus, job_ids: Sequence[str]) -> list[JobRecord]:
    """Show the jobs until all have ended; their final records, in the order given."""
    if len(job_ids) > MAX_BARS:
        return await _follow_many(bus, job_ids)
    with live_view() as view:
        async with anyio.create_task_group() as group:
            for job_id in job_ids:
                group.start_soon(_show, bus, job_id, view)
    return [await bus.status(job_id) for job_id in job_ids]


async def _show(bus: Bus, job_id: str, view: View) -> None:
    async for event in bus.watch(job_id):
        view.show(event)


async def _follow_many(bus: Bus, job_ids: Sequence[str]) -> list[JobRecord]:
    ended: dict[str, JobRecord] = {}
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("jobs", total=len(job_ids))
        async for record in bus.results(job_ids):
            ended[record.job_id] = record
            progress.update(bar, completed=len(ended))
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
        words.append(f"({done / _GIB:.2f} of {event.bytes_total / _GIB:.2f} GiB)")
    if event.eta_seconds:
        words.append(f"{event.eta_seconds:.0f} s left")
    return " ".join(each for each in words if each)
