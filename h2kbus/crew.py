"""A fixed number of tasks that work off what they are given: cheaper than a task for each piece of work."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

Item = TypeVar("Item")


class Crew(Generic[Item]):
    """`serve` runs the tasks until `dismiss`; what was given before is done first."""

    def __init__(self, size: int, work: Callable[[Item], Awaitable[None]]) -> None:
        self._size = size
        self._work = work
        self._given: asyncio.Queue[Item | None] = asyncio.Queue()

    def give(self, item: Item) -> None:
        """Hand over a piece of work; it starts as soon as a task is free."""
        self._given.put_nowait(item)

    def dismiss(self) -> None:
        """Let every task end after what it has been given."""
        for _ in range(self._size):
            self._given.put_nowait(None)

    async def serve(self) -> None:
        """Work until dismissed."""
        async with anyio.create_task_group() as group:
            for _ in range(self._size):
                group.start_soon(self._serve_one)

    async def _serve_one(self) -> None:
        while (item := await self._given.get()) is not None:
            await self._work(item)
