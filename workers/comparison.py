"""Whether two disks hold the same: compared in parts, several at once, and never less than all of both.

A part that was not compared to its end has either failed or been cancelled, and so has the whole.
"""

import itertools
from collections.abc import Sequence
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.qemu import Disk, OnFraction, Part, QemuImg
from workers.side_by_side import side_by_side

GRAIN: Final = 2 << 20
"""Parts begin at multiples of what qemu-img compares at once."""


class Comparison(msgspec.Struct, frozen=True):
    """How to compare: in so many parts, so many at once, and why so."""

    parts: int = 1
    at_once: int = 1
    reason: str = ""


async def require_same_content(
    qemu: QemuImg, one: Disk, other: Disk, size: int, how: Comparison, on_fraction: OnFraction
) -> None:
    """Compare the whole content; what only the larger disk has must be zeros.

    `size` is that of the smaller one, in bytes. Raises CONTENT_MISMATCH, at the first difference.
    """
    parts = parts_of(size, how.parts) if one.divisible and other.divisible else [None]
    progress = _Progress(parts, size, on_fraction)
    waiting = iter(enumerate(parts))

    async def take_turns() -> None:
        for number, part in waiting:
            if not await qemu.compare(one.only(part), other.only(part), progress.of(number)):
                raise OperationFailed(
                    ErrorCode.CONTENT_MISMATCH, f"the {other.format} image differs from {one.path}"
                )

    await side_by_side(*itertools.repeat(take_turns, how.at_once))


def parts_of(size: int, count: int) -> Sequence[Part | None]:
    """At most `count` parts that are together the whole disk; the last one goes on to its end.

    None is the whole disk as it is.
    """
    step = max(GRAIN, -(-size // (count * GRAIN)) * GRAIN)
    begins = range(0, size, step)
    if len(begins) <= 1:
        return [None]
    return [*(Part(each, step) for each in begins[:-1]), Part(begins[-1])]


class _Progress:
    """One fraction out of those of the parts."""

    def __init__(self, parts: Sequence[Part | None], size: int, on_fraction: OnFraction) -> None:
        begins = [each.offset if each else 0 for each in parts]
        self._lengths = [end - begin for begin, end in itertools.pairwise([*begins, size])]
        self._done = [0.0] * len(parts)
        self._size = size
        self._on_fraction = on_fraction

    def of(self, number: int) -> OnFraction:
        def advance(fraction: float) -> None:
            self._done[number] = fraction * self._lengths[number]
            self._on_fraction(sum(self._done) / max(self._size, 1))

        return advance
