"""`h2kbus bench`: each part measures the bus beside what it is compared with, in one run."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from h2kbus.cli.bench import convert, depth, durability, history, latency, memory, pipeline
from h2kbus.cli.exits import say
from h2kbus.cli.output import print_line, print_table

Figures = dict[str, dict[str, Any]]

PARTS: Final[Mapping[str, Callable[[int | None], Awaitable[dict[str, Any]]]]] = {
    "pipeline": pipeline.measure,
    "latency": latency.measure,
    "depth": depth.measure,
    "history": history.measure,
    "durability": durability.measure,
    "convert": convert.measure,
    "memory": memory.measure,
}
"""Each part takes how many jobs it is to run, queue or keep; without that it takes its own number."""


async def measure(parts: Sequence[str], jobs: int | None = None, *, conversions: tuple[int, int]) -> Figures:
    """Run the parts one after the other; `conversions` are of disks of so many MiB, and so many of a kind."""
    size_mib, rounds = conversions
    figures: Figures = {}
    runs: dict[str, Callable[[int | None], Awaitable[dict[str, Any]]]] = dict(PARTS)
    runs["convert"] = partial(convert.measure, size_mib=size_mib, rounds=rounds)
    for part in parts:
        say(f"measuring {part}")
        figures[part] = await runs[part](jobs)
    return figures


def report(figures: Figures) -> None:
    """The figures for people, one table for each part."""
    for part, found in figures.items():
        print_line(part)
        cells = found.pop("cells", [])
        lines = list(found.values())
        if all(isinstance(each, dict) and each.keys() == lines[0].keys() for each in lines):
            rows = [(f"  {name}", *map(_cell, each.values())) for name, each in found.items()]
            print_table(("  ", *lines[0]), rows)
        else:
            print_table(("  figure", "value"), _rows(found))
        if cells:
            print_table(tuple(cells[0]), [tuple(each.values()) for each in cells])


def _cell(value: object) -> object:
    if value is None:
        return "-"
    return ("no", "yes")[value] if isinstance(value, bool) else value


def _rows(found: dict[str, Any], prefix: str = "  ") -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows
