"""The live screen and its keyboard, put together."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import msgspec
from rich.console import Console
from rich.live import Live

from h2kbus.cli.invocation import Invocation
from h2kbus.cli.output import print_json
from h2kbus.cli.top.board import Board, Running
from h2kbus.cli.top.keys import keys, single_keys
from h2kbus.cli.top.screen import Look, Screen
from h2kbus.cli.top.tail import Tail
from h2kbus.client import Bus
from h2kbus.errors import BusError, H2KBusError
from h2kbus.watch import EventFeed

REFRESH_SECONDS: Final = 1.0
DRAW_SECONDS: Final = 0.25
_MANY_ROWS: Final = 10_000
_IN_LOG: Final = frozenset({"l", "escape", "?"})
"""The keys that mean something while a log is shown: rows that are not seen are not steered."""
_HELP: Final = "↑↓ or j k choose a job, c cancels it, l shows its log, / filters, Escape goes back, q quits"


async def show(invocation: Invocation, once: bool, words: str) -> None:
    """Show the fleet until `q` or Ctrl-C, or once where nobody could press a key."""
    where = invocation.settings().display_url
    async with invocation.bus() as bus:
        board = Board(bus)
        await board.recall()
        await board.refresh()
        if invocation.json:
            print_json(board.snapshot())
        elif once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            console = Console()
            console.print(Screen(board, Look(words=words), where), height=_MANY_ROWS)
        else:
            await Desk(bus, board, where, Look(words=words)).run()


class Desk:
    """One person at the screen."""

    def __init__(self, bus: Bus, board: Board, where: str, look: Look) -> None:
        self._bus = bus
        self._board = board
        self._where = where
        self._look = look
        self._asked_about: Running | None = None
        self._tail: Tail | None = None
        self._opened: anyio.Event = anyio.Event()
        self._keys: dict[str, Callable[[], Awaitable[None]]] = {
            "up": self._up,
            "k": self._up,
            "down": self._down,
            "j": self._down,
            "c": self._ask,
            "l": self._log,
            "/": self._filter,
            "escape": self._clear,
            "?": self._help,
        }

    async def run(self) -> None:
        """Show and steer until `q`, or until nobody is at the keyboard any more."""
        with single_keys(), Live(console=Console(), screen=True, auto_refresh=False) as live:
            async with anyio.create_task_group() as group:
                group.start_soon(self._refresh)
                group.start_soon(self._listen)
                group.start_soon(self._draw, live)
                group.start_soon(self._follow)
                async for key in keys():
                    if key == "q" and not self._look.typing:
                        break
                    await self._press(key)
                    self._redraw(live)
                group.cancel_scope.cancel()

    async def _refresh(self) -> None:
        while True:
            await anyio.sleep(REFRESH_SECONDS)
            try:
                await self._board.refresh()
            except BusError as error:
                self._board.trouble = f"{error.error_code}: {error}"
            else:
                self._board.trouble = ""

    async def _listen(self) -> None:
        feed = EventFeed(self._bus.connection, self._bus.topology, "*")
        async with feed.open() as events:
            async for event in events:
                if feed.is_new(event):
                    self._board.hear(event)

    async def _draw(self, live: Live) -> None:
        while True:
            self._redraw(live)
            await anyio.sleep(DRAW_SECONDS)

    def _redraw(self, live: Live) -> None:
        last = max(len(self._jobs()) - 1, 0)
        self._change(chosen=min(self._look.chosen, last))
        live.update(Screen(self._board, self._look, self._where, self._tail), refresh=True)

    async def _press(self, key: str) -> None:
        if self._asked_about is not None:
            await self._answer(key)
        elif self._look.typing:
            self._type(key)
        elif key in (self._keys if self._tail is None else _IN_LOG):
            self._change(said="")
            await self._keys[key]()

    def _jobs(self) -> list[Running]:
        return self._board.running(self._look.words)

    def _change(self, **changes: Any) -> None:
        self._look = msgspec.structs.replace(self._look, **changes)

    async def _up(self) -> None:
        self._change(chosen=max(self._look.chosen - 1, 0))

    async def _down(self) -> None:
        self._change(chosen=self._look.chosen + 1)

    async def _filter(self) -> None:
        self._change(typing=True)

    async def _clear(self) -> None:
        if self._tail is None:
            self._change(words="", typing=False)
        else:
            self._close_log()

    async def _log(self) -> None:
        """Show the chosen job's log in place of the board, or the board again."""
        if self._tail is not None:
            self._close_log()
        elif jobs := self._jobs():
            self._tail = Tail(jobs[min(self._look.chosen, len(jobs) - 1)].job_id)
            self._opened.set()
        else:
            self._change(said="no job is chosen")

    def _close_log(self) -> None:
        if self._tail is not None:
            self._tail.scope.cancel()
            self._tail = None

    async def _follow(self) -> None:
        """Follow the log that is open, one after the other."""
        while True:
            await self._opened.wait()
            self._opened = anyio.Event()
            if self._tail is not None:
                await self._tail.run(self._bus)

    async def _help(self) -> None:
        self._change(said=_HELP)

    async def _ask(self) -> None:
        jobs = self._jobs()
        if not jobs:
            self._change(said="no job is chosen")
            return
        self._asked_about = jobs[min(self._look.chosen, len(jobs) - 1)]
        self._change(asked=f"cancel {self._asked_about.job_id}? y or n")

    async def _answer(self, key: str) -> None:
        job, self._asked_about = self._asked_about, None
        self._change(asked="", said="left alone")
        if job is None or key != "y":
            return
        try:
            await self._bus.cancel(job.job_id, "from h2kbus top")
        except H2KBusError as error:
            self._change(said=f"{error.error_code}: {error}. {error.advice}")
        else:
            self._change(said=f"{job.job_id}: cancellation requested")

    def _type(self, key: str) -> None:
        if key == "enter":
            self._change(typing=False)
        elif key == "escape":
            self._change(typing=False, words="")
        elif key == "backspace":
            self._change(words=self._look.words[:-1])
        elif len(key) == 1:
            self._change(words=self._look.words + key, chosen=0)
