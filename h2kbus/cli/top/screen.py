"""How the board looks: as many rows and columns as the terminal has room for, and never one more."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from h2kbus.cli.fleet import in_words
from h2kbus.cli.output import printable
from h2kbus.cli.rate import in_bytes
from h2kbus.cli.top.board import Board, Running
from h2kbus.cli.top.tail import Tail
from h2kbus.fleet import LaneLoad
from subjects.fleet import WorkerCapabilities
from subjects.states import State

BAR_CELLS: Final = 16
_HELP: Final = "q quit  ↑↓ choose  c cancel  l log  / filter  ? help"
_COLOURS: Final = {State.FAILED: "red", State.CANCELLED: "yellow", State.COMPLETED: "green"}
_TITLE_ROWS: Final = 2
_TITLE_AND_FOOT: Final = 2


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What the person at the keyboard has chosen: a row, a filter, and what they are asked."""

    chosen: int = 0
    words: str = ""
    typing: bool = False
    asked: str = ""
    said: str = ""


class Column(msgspec.Struct, frozen=True):
    """A column, and from which width of the terminal on it is shown; 0 always."""

    title: str
    cell: Callable[..., str | Text]
    least: int = 0
    right: bool = False
    grows: bool = False


def _state_of(worker: WorkerCapabilities) -> str:
    return "draining" if worker.draining else "cordoned" if worker.cordoned else "ready"


def _bar(percent: float) -> str:
    full = round(percent / 100 * BAR_CELLS)
    return "█" * full + "░" * (BAR_CELLS - full)


def _rate(job: Running) -> str:
    return "-" if job.mark.rate is None else f"{in_bytes(job.mark.rate)}/s"


LANES: Final = (
    Column("LANE", lambda each: f"{each.pool}/{each.lane}/{each.priority}", grows=True),
    Column("WAITING", lambda each: str(each.waiting), right=True),
    Column("RUNNING", lambda each: str(each.running), right=True),
    Column("OLDEST", lambda each: "-" if each.oldest_seconds is None else in_words(each.oldest_seconds), 60),
    Column("PARKED", lambda each: str(each.parked), 70, right=True),
)
WORKERS: Final = (
    Column("WORKER", lambda each: each.worker_id, grows=True),
    Column("STATE", _state_of),
    Column("SLOTS", lambda each: f"{each.free_slots}/{each.max_concurrent_jobs} free"),
    Column("POOL", lambda each: each.pool, 70),
    Column(
        "CAPABILITIES",
        lambda each: " ".join(sorted(name for name, yes in each.capabilities.items() if yes)),
        100,
    ),
)
JOBS: Final = (
    Column("JOB", lambda each: each.job_id, grows=True),
    Column("OPERATION", lambda each: each.operation, 70),
    Column("PROGRESS", lambda each: _bar(each.percent), 60),
    Column("%", lambda each: f"{each.percent:.1f}", right=True),
    Column("RATE", _rate, 80, right=True),
    Column("LEFT", lambda each: "-" if each.eta_seconds is None else in_words(each.eta_seconds), right=True),
    Column("PHASE", lambda each: each.phase, 90),
    Column("WORKER", lambda each: each.worker_id, 120),
)
ENDS: Final = (
    Column("LAST ENDS", lambda each: f"{each.at} {each.job_id}"),
    Column("STATE", lambda each: Text(str(each.state), style=_COLOURS.get(each.state, ""))),
    Column("WHY", lambda each: f"{each.code} {each.message}".strip(), grows=True),
)


class Screen:
    """Renders a board for one look at it."""

    def __init__(self, board: Board, look: Look, where: str, tail: Tail | None = None) -> None:
        """With a `tail`, the end of that log is shown and nothing else of the board."""
        self._tail = tail
        self._board = board
        self._look = look
        self._where = where

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.size.height
        yield self._head(width)
        if self._tail is not None:
            yield from _log(self._tail, height - _TITLE_AND_FOOT - 1, width)
            yield self._foot(width)
            return
        jobs = self._board.running(self._look.words)
        sections: list[tuple[Sequence[Column], list[object]]] = [
            (JOBS, list(jobs)),
            (LANES, [*_busy(self._board.lanes)]),
            (WORKERS, list(self._board.workers)),
            (ENDS, list(self._board.ended)),
        ]
        room = shares(
            [len(rows) for _, rows in sections], height - _TITLE_AND_FOOT - _TITLE_ROWS * len(sections)
        )
        for (columns, rows), share in zip(sections, room, strict=True):
            chosen = self._look.chosen if columns is JOBS else None
            yield from _section(columns, rows, share, width, chosen)
        yield self._foot(width)

    def _head(self, width: int) -> Text:
        board = self._board
        waiting = sum(each.waiting for each in board.lanes)
        free = sum(each.free_slots for each in board.workers)
        words = (
            f"h2kbus {self._where}  running {len(board.running())}  waiting {waiting}  "
            f"workers {len(board.workers)}  free slots {free}"
        )
        head = Text(printable(words), style="bold")
        if board.trouble:
            head = Text(printable(board.trouble), style="bold red")
        head.truncate(width, overflow="ellipsis")
        return head

    def _foot(self, width: int) -> Text:
        look = self._look
        words = look.asked or (f"filter: {look.words}▏" if look.typing else look.said) or _HELP
        if look.words and not (look.typing or look.asked or look.said):
            words = f"filter: {look.words}   {_HELP}"
        foot = Text(printable(words), style="bold" if look.asked or look.typing else "dim")
        foot.truncate(width, overflow="ellipsis")
        return foot


def _log(tail: Tail, rows: int, width: int) -> Iterable[Text]:
    """The last lines that there is room for; each takes one row, as a log's lines are long."""
    yield _cut(Text(f"log of {tail.job_id}", style="reverse"), width)
    shown = tail.lines[-rows:] if rows > 0 else []
    for each in shown:
        yield _cut(Text(printable(each)), width)
    for _ in range(rows - len(shown)):
        yield Text("")


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text


def shares(wanted: Sequence[int], rows: int) -> list[int]:
    """Divide the rows: each section gets what it wants as long as all have as much, the first ones more."""
    given = [0] * len(wanted)
    left = max(rows, 0)
    while left > 0 and given != list(wanted):
        for section, most in enumerate(wanted):
            if left > 0 and given[section] < most:
                given[section] += 1
                left -= 1
    return given


def _section(
    columns: Sequence[Column], rows: Sequence[object], share: int, width: int, chosen: int | None
) -> Iterable[Table | Text]:
    shown = [each for each in columns if each.least <= width]
    table = Table(box=None, expand=True, pad_edge=False, header_style="reverse", show_edge=False)
    for number, column in enumerate(shown):
        hidden = len(rows) - share
        more = f" ({hidden} more)" if number == 0 and hidden > 0 else ""
        table.add_column(
            column.title + more,
            justify="right" if column.right else "left",
            ratio=1 if column.grows else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    first = 0 if chosen is None else max(0, min(chosen - share + 1, len(rows) - share))
    for number, row in enumerate(rows[first : first + share], first):
        cells = (column.cell(row) for column in shown)
        table.add_row(
            *(each if isinstance(each, Text) else Text(printable(each)) for each in cells),
            style="bold reverse" if number == chosen else None,
        )
    yield table
    yield Text("")


def _busy(lanes: Sequence[LaneLoad]) -> list[LaneLoad]:
    """Lanes in which something waits or runs, the fullest first."""
    busy = [each for each in lanes if each.waiting or each.running]
    return sorted(busy, key=lambda lane: (-lane.waiting, lane.priority))
