"""What is chosen for a conversion, row by row."""

import msgspec
import pytest

from subjects.spec import ImageFormat
from workers.conversion import Compression, ConversionFacts, choose_comparison, choose_options, usable_cores

MIB = 1 << 20
GIB = 1 << 30

FACTS = ConversionFacts(
    source="vmdk",
    packed=False,
    divisible=True,
    allocated_bytes=4 * GIB,
    target="qcow2",
    compression="zlib",
    cores=2,
)


def but(**changes: object) -> ConversionFacts:
    return msgspec.structs.replace(FACTS, **changes)


@pytest.mark.parametrize(
    ("target", "compression", "options"),
    [
        ("qcow2", "zlib", ("-W",)),
        ("qcow2", "zstd", ("-W",)),
        ("qcow2", None, ("-W",)),
        ("raw", None, ("-W",)),
        ("vdi", None, ()),
        ("vmdk", None, ()),
        ("vmdk", "zlib", ()),
        ("vhd", None, ()),
        ("vhdx", None, ()),
    ],
)
def test_only_proven_drivers_are_written_out_of_order(
    target: ImageFormat, compression: Compression | None, options: tuple[str, ...]
) -> None:
    assert choose_options(but(target=target, compression=compression)).options == options


@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_packed_source_is_read_in_order_unless_packing_the_result_takes_longer(target: ImageFormat) -> None:
    assert choose_options(but(packed=True, target=target, compression=None)).options == ()
    assert choose_options(but(packed=True)).options == ("-W",)


@pytest.mark.parametrize(
    ("facts", "parts", "at_once"),
    [
        (FACTS, 8, 2),
        (but(cores=16), 16, 4),
        (but(cores=1), 1, 1),
        (but(divisible=False), 1, 1),
        (but(allocated_bytes=60 * MIB), 1, 1),
        (but(allocated_bytes=100 * MIB), 3, 2),
        (but(allocated_bytes=100 * MIB, cores=16), 3, 3),
        (but(compression=None), 8, 2),
        (but(source="qcow2", target="raw", compression=None), 8, 2),
        (but(source="raw"), 8, 2),
        (but(source="raw", target="vmdk", compression=None), 8, 2),
        (but(source="raw", compression=None), 1, 1),
        (but(source="vhdx", compression=None), 1, 1),
        (but(source="raw", target="raw", compression=None), 1, 1),
    ],
)
def test_comparison_is_divided_where_reading_is_slow_and_there_is_much_to_read(
    facts: ConversionFacts, parts: int, at_once: int
) -> None:
    found = choose_comparison(facts)
    assert (found.parts, found.at_once) == (parts, at_once)


@pytest.mark.parametrize(
    "facts",
    [FACTS, but(cores=1), but(target="vdi"), but(divisible=False), but(packed=True, compression=None)],
)
def test_every_choice_says_why(facts: ConversionFacts) -> None:
    assert ": " in choose_options(facts).reason
    assert ": " in choose_comparison(facts).reason


def test_usable_cores_are_at_least_one() -> None:
    assert usable_cores() >= 1
