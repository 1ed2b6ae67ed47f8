"""A bound on how much is done at once, with a way to wait until there is room."""

from typing import Self

import anyio


class Slots:
    """Counts what is under way. `with slots.take():` gives the slot back however its holder ends."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._changed: anyio.Event | None = None

    @property
    def free(self) -> int:
        return self.limit - self._taken

    def take(self) -> Self:
        """Occupy a slot now; leaving the context frees it."""
        self._taken += 1
        return self

    def __enter__(self) -> None:
        """The slot was occupied by `take` already, which may have been in another task."""

    def __exit__(self, *_: object) -> None:
        self._taken -= 1
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def wait_free(self, at_least: int = 1) -> int:
        """Wait until that many slots are free, and return how many are."""
        while self.free < at_least:
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()
        return self.free

    async def wait_idle(self) -> None:
        await self.wait_free(self.limit)
