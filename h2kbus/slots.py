"""A bound on how much is done at once, with a way to wait until there is room."""

from typing import Self

import anyio


class Slots:
    """Counts what is under way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._changed: anyio.Event | None = None

    @property
    def free(self) -> int:
        return self.limit - self._taken

    def take(self) -> "Slot":
        """Occupy a slot now."""
        self._taken += 1
        return Slot(self)

    async def wait_free(self, at_least: int = 1) -> int:
        """Wait until that many slots are free, and return how many are."""
        while self.free < at_least:
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()
        return self.free

    async def wait_idle(self) -> None:
        await self.wait_free(self.limit)

    def _take_back(self) -> None:
        self._taken -= 1
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class Slot:
    """One occupied slot. `with slot:` gives it back however its holder ends, unless that was done before."""

    def __init__(self, slots: Slots) -> None:
        self._slots: Slots | None = slots

    def give_back(self) -> None:
        """Free the slot; safe to call twice."""
        if self._slots is not None:
            self._slots._take_back()  # noqa: SLF001 - the two classes are one thing
            self._slots = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()
