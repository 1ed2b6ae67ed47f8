"""A bound on how much is done at once: how much room there is, and how much there will be in a moment."""

from collections import deque
from typing import Self

import anyio


class Slots:
    """Counts what is under way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._ending = 0
        self._waiting: deque[Slot] = deque()
        self._changed: anyio.Event | None = None

    @property
    def free(self) -> int:
        return self.limit - self._taken

    @property
    def coming(self) -> int:
        """Those that are free or will be as soon as their holders have ended, and are promised to nobody."""
        return self.free + self._ending - len(self._waiting)

    def take(self) -> "Slot":
        """Occupy a slot now."""
        self._taken += 1
        return Slot(self)

    def reserve(self) -> "Slot | None":
        """A slot that is free now, or one that is coming; None when there is neither."""
        if self.free > 0:
            return self.take()
        if self.coming <= 0:
            return None
        promised = Slot(self, is_ready=False)
        self._waiting.append(promised)
        return promised

    async def wait_free(self, at_least: int = 1) -> int:
        """Wait until that many slots are free, and return how many are."""
        while self.free < at_least:
            await self._change()
        return self.free

    async def wait_coming(self, at_least: int = 1) -> int:
        """Wait until that many slots are free or coming, and return how many are."""
        while self.coming < at_least:
            await self._change()
        return self.coming

    async def wait_idle(self) -> None:
        await self.wait_free(self.limit)

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _end_soon(self) -> None:
        self._ending += 1
        self._tell()

    def _take_back(self, *, was_ending: bool) -> None:
        self._ending -= was_ending
        if self._waiting:
            self._waiting.popleft().arrive()
        else:
            self._taken -= 1
        self._tell()

    def _break_promise(self, slot: "Slot") -> None:
        self._waiting.remove(slot)
        self._tell()


class Slot:
    """One occupied slot, or one that is promised. `with slot:` gives it back however its holder ends."""

    def __init__(self, slots: Slots, *, is_ready: bool = True) -> None:
        self._slots: Slots | None = slots
        self._is_ending = False
        self.is_ready = is_ready
        self._ready: anyio.Event | None = None

    async def wait_ready(self) -> None:
        """Wait until a promised slot is there."""
        if not self.is_ready:
            self._ready = anyio.Event()
            await self._ready.wait()

    def end_soon(self) -> None:
        """Say that the slot is given back as soon as what has been sent is answered."""
        if self._slots is not None and self.is_ready and not self._is_ending:
            self._is_ending = True
            self._slots._end_soon()  # noqa: SLF001 - the two classes are one thing

    def give_back(self) -> None:
        """Free the slot; safe to call twice."""
        slots, self._slots = self._slots, None
        if slots is None:
            return
        if self.is_ready:
            slots._take_back(was_ending=self._is_ending)  # noqa: SLF001 - the two classes are one thing
        else:
            slots._break_promise(self)  # noqa: SLF001 - the two classes are one thing

    def arrive(self) -> None:
        """The promise is kept: the slot is the holder's now."""
        self.is_ready = True
        if self._ready is not None:
            self._ready.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()
