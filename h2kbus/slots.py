"""A bound on how much is done at once, with a way to wait until there is room."""

import contextlib
from collections.abc import Iterator

import anyio


class Slots:
    """Counts what is under way; a slot is given back however its holder ends."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._changed = anyio.Event()

    @property
    def free(self) -> int:
        return self.limit - self._taken

    def take(self) -> contextlib.AbstractContextManager[None]:
        """Occupy a slot now; leaving the returned context frees it."""
        self._taken += 1
        return self._held()

    async def wait_free(self, at_least: int = 1) -> int:
        """Wait until that many slots are free, and return how many are."""
        while self.free < at_least:
            await self._changed.wait()
        return self.free

    async def wait_idle(self) -> None:
        await self.wait_free(self.limit)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._taken -= 1
            self._changed.set()
            self._changed = anyio.Event()
