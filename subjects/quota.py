"""Quotas: how much one submitter may have on the bus, and how fast it may come.

Operators set them, for one submitter or for all that have none of their own. Schedulers refuse what goes
beyond, before anything is written of it.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from subjects.spec import Timestamp, keep_utc

RATE_SECONDS: Final = 60.0
"""A rate holds on average over this time, so that a minute's worth may come at once."""


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What one submitter may have; None is without bound.

    `queued` and `bytes` count jobs that have not ended and the size of their submissions. `rate` is in
    submissions and retries per second; cancellations may come as fast besides.
    """

    queued: Annotated[int, Meta(ge=0)] | None = None
    bytes: Annotated[int, Meta(ge=0)] | None = None
    rate: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    by: str
    at: Timestamp

    def __post_init__(self) -> None:
        keep_utc(self, "at")


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why commands of a submitter were refused last. Nothing else is written of them.

    `refused` counts those that scheduler `by` has refused without a minute's rest, about a second behind.
    """

    reason: str
    refused: Annotated[int, Meta(ge=1)]
    by: str
    at: Timestamp

    def __post_init__(self) -> None:
        keep_utc(self, "at")


class Stock(msgspec.Struct):
    """What a submitter has on the bus: jobs that have not ended, and the bytes of their submissions."""

    jobs: int = 0
    bytes: int = 0


def excess(quota: Quota, stock: Stock, size: int) -> str | None:
    """Why one more job of `size` bytes is too much, in words; None when it fits."""
    if quota.queued is not None and stock.jobs >= quota.queued:
        return f"{quota.queued} jobs that have not ended are allowed"
    if quota.bytes is not None and stock.bytes + size > quota.bytes:
        return f"{quota.bytes} bytes of jobs that have not ended are allowed"
    return None


class Allowance:
    """What is left of a rate at a moment: a minute's worth at the most, growing with time.

    Moments are seconds on one monotonic clock.
    """

    __slots__ = ("_at", "_left")

    def __init__(self, rate: float, now: float) -> None:
        self._left, self._at = self._most(rate), now

    def take(self, rate: float, now: float) -> bool:
        """Use up one; false when there is none left."""
        self._left = min(self._most(rate), self._left + (now - self._at) * rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def is_idle(self, now: float) -> bool:
        """Whether nothing was taken for so long that it is as good as new."""
        return now - self._at > RATE_SECONDS

    @staticmethod
    def _most(rate: float) -> float:
        return max(1.0, rate * RATE_SECONDS)
