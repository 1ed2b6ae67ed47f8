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
from h2kbus.client import Bus
from h2kbus.errors import BusError, H2KBusError
from h2kbus.watch import EventFeed

REFRESH_SECONDS: Final = 1.0
DRAW_SECONDS: Final = 0.25
_MANY_ROWS: Final = 10_000
_HELP: Final = "↑↓ or j k choose a job, c cancels it, / filters, Escape lifts the filter, q quits"


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
        self._keys: dict[str, Callable[[], Awaitable[None]]] = {
            "up": self._up,
            "k": self._up,
            "down": self._down,
            "j": self._down,
            "c": self._ask,
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
        live.update(Screen(self._board, self._look, self._where), refresh=True)

    async def _press(self, key: str) -> None:
        if self._asked_about is not None:
            await self._answer(key)
        elif self._look.typing:
            self._type(key)
        elif key in self._keys:
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
        self._change(words="", typing=False)

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
