"""How qemu-img is run for a conversion and its proof: chosen from facts, by tables, each with its reason.

What was measured, and what did not help, is in docs/performance-conversion.md.
"""

import os
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from subjects.spec import ImageFormat
from workers.comparison import Comparison

Compression = Literal["zlib", "zstd"]

MOST_AT_ONCE: Final = 4
"""More comparisons at once would take cores from other jobs, and memory for each."""

PARTS_EACH: Final = 4
"""Content is rarely spread evenly: who is done with an empty part takes another."""

LEAST_PART_BYTES: Final = 32 << 20
"""A part with less content is compared faster than its tool starts."""


class ConversionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice depends on.

    `packed` says that the source, or what it is a layer of, is a streamOptimized vmdk, and `divisible` that
    it may be read in parts, as every result may. `allocated_bytes` is what the source's content takes on
    its disk at most. `compression` is how the target is compressed, if it is. `cores` are those that the
    worker may use.
    """

    source: ImageFormat
    packed: bool
    divisible: bool
    allocated_bytes: int
    target: ImageFormat
    compression: Compression | None
    cores: int


class Choice(msgspec.Struct, frozen=True):
    """Options of `qemu-img convert`, and why."""

    options: tuple[str, ...]
    reason: str


_IN_ORDER: Final = "in order: qemu's driver for {} is not proven to bear several writers"
_OUT_OF_ORDER: Final = "8 coroutines, out of order: qemu's driver for {} bears several writers"
_PACKING: Final = "8 coroutines, out of order: clusters are compressed on several cores at once"
_ZLIB: Final = f"{_PACKING}, by zlib as asked (zstd takes a quarter of the time, and qemu 5.1 to read it)"
_UNPACKING: Final = Choice(
    (), "in order: one thread unpacks the source, and is slower with several in its way"
)

_WRITING: Final[Mapping[tuple[ImageFormat, Compression | None], Choice]] = {
    ("raw", None): Choice(("-W",), _OUT_OF_ORDER.format("raw")),
    ("qcow2", None): Choice(("-W",), _OUT_OF_ORDER.format("qcow2")),
    ("qcow2", "zlib"): Choice(("-W",), _ZLIB),
    ("qcow2", "zstd"): Choice(("-W",), _PACKING),
}
"""By the target's format and compression. Out of order, qemu's driver for vdi (7.2) was seen
to leave a header that counts blocks twice; vmdk, vhd and vhdx gained nothing that would be worth a try."""

_SLOW_TO_READ: Final = frozenset({"vmdk", "qcow2"})
"""Sources that qemu reads slower than memory: vmdk cluster by cluster, and qcow2 may be compressed."""


def choose_options(facts: ConversionFacts) -> Choice:
    """How to write the target."""
    if facts.packed and facts.compression is None:
        return _UNPACKING
    in_order = Choice((), _IN_ORDER.format(facts.target))
    return _WRITING.get((facts.target, facts.compression), in_order)


def choose_comparison(facts: ConversionFacts) -> Comparison:
    """In how many parts to compare both, and how many at once."""
    if facts.source not in _SLOW_TO_READ and facts.compression is None and facts.target != "vmdk":
        return Comparison(reason="in one go: both are read as fast as they are compared")
    if not facts.divisible:
        return Comparison(reason="in one go: qemu cannot read a layered image in parts")
    at_once = min(facts.cores, MOST_AT_ONCE)
    parts = min(facts.allocated_bytes // LEAST_PART_BYTES, at_once * PARTS_EACH)
    at_once = min(at_once, parts)
    if at_once <= 1:
        return Comparison(reason="in one go: there is too little content, or one core only")
    reason = f"{parts} parts, {at_once} at once: reading them takes a core's time, and there are more"
    return Comparison(parts, at_once, reason)


def usable_cores() -> int:
    """How many processors the worker and its tools may run on."""
    return len(os.sched_getaffinity(0))
