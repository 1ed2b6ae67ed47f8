"""`h2kbus bench`: each part measures the bus beside what it is compared with, in one run."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from h2kbus.cli.bench import convert, latency, memory, pipeline
from h2kbus.cli.exits import say
from h2kbus.cli.output import print_line, print_table

Figures = dict[str, dict[str, Any]]

PARTS: Final[Mapping[str, Callable[[], Awaitable[dict[str, Any]]]]] = {
    "pipeline": pipeline.measure,
    "latency": latency.measure,
    "convert": convert.measure,
    "memory": memory.measure,
}


async def measure(parts: Sequence[str], *, convert_mib: int) -> Figures:
    """Run the parts one after the other; `convert_mib` is the size of the disks that are converted."""
    figures: Figures = {}
    runs: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
        **PARTS,
        "convert": partial(convert.measure, convert_mib),
    }
    for part in parts:
        say(f"measuring {part}")
        figures[part] = await runs[part]()
    return figures


def report(figures: Figures) -> None:
    """The figures for people, one table for each part."""
    for part, found in figures.items():
        print_line(part)
        cells = found.pop("cells", [])
        print_table(("  figure", "value"), _rows(found))
        if cells:
            print_table(tuple(cells[0]), [tuple(each.values()) for each in cells])


def _rows(found: dict[str, Any], prefix: str = "  ") -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows
