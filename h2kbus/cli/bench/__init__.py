"""`h2kbus bench`: each part measures the bus beside what it is compared with, in one run."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
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


async def measure(parts: Sequence[str]) -> Figures:
    """Run the parts one after the other."""
    figures: Figures = {}
    for part in parts:
        say(f"measuring {part}")
        figures[part] = await PARTS[part]()
    return figures


def report(figures: Figures) -> None:
    """The figures for people, one table for each part."""
    for part, found in figures.items():
        print_line(part)
        print_table(("  figure", "value"), _rows(found))


def _rows(found: dict[str, Any], prefix: str = "  ") -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows
