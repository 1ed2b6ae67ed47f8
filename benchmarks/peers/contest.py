"""Rounds in which every contestant has a turn, so that what else the machine does meets all of them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from benchmarks.peers.contestants import CONTESTANTS, KEEPS, Turn
from h2kbus.cli.exits import say
from h2kbus.cli.output import print_line, print_table

OURS: Final = "h2kbus"
BARE: Final = "bare loop"
EVERY_WRITE: Final = "bare loop of every write"
GOALS: Final[Sequence[tuple[str, tuple[str, ...], float]]] = (
    ("the better of arq and dramatiq", ("arq", "dramatiq"), 2.5),
    ("celery", ("celery",), 5.0),
    ("the bare loop of the same durable writes", (EVERY_WRITE,), 0.9),
    ("the bare loop of four of the eight writes", (BARE,), 0.9),
    ("the better of taskiq-nats and FastStream, which keep no state", ("taskiq-nats", "faststream"), 1.0),
)
"""What h2kbus is to be, as a multiple of others."""

Rates = Mapping[str, Sequence[float]]


class Scores(NamedTuple):
    """Of each contestant, one number for each round: jobs a second, and processor time of a job."""

    rates: dict[str, list[float]]
    cpu_ms: dict[str, list[float]]


async def play(names: Sequence[str], rounds: int, turn: Turn) -> Scores:
    """A turn of every contestant in each round. Each round begins with another of them."""
    scores = Scores({name: [] for name in names}, {name: [] for name in names})
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            cost = await CONTESTANTS[name](turn)
            scores.rates[name].append(cost.rate)
            scores.cpu_ms[name].append(cost.cpu_ms)
            say(f"round {number + 1}: {name} {scores.rates[name][-1]:.0f} jobs/s")
    return scores


def figures(scores: Scores) -> dict[str, Any]:
    """The median and the spread of each, and how many times as fast h2kbus was, round by round."""
    found: dict[str, Any] = {}
    rates = scores.rates
    for name, each in rates.items():
        found[name] = {
            "jobs_per_s": round(statistics.median(each)),
            "slowest": round(min(each)),
            "fastest": round(max(each)),
            "cpu_ms_per_job": round(statistics.median(scores.cpu_ms[name]), 2),
            "h2kbus_ratio": _ratio(rates, OURS, name),
            "ratio_to_bare": _ratio(rates, name, BARE),
        }
    return found


def goals(rates: Rates) -> list[dict[str, Any]]:
    """What is wanted of h2kbus beside those who took part."""
    return [
        {"beside": beside, "wanted": wanted, "measured": min(measured), "met": min(measured) >= wanted}
        for beside, names, wanted in GOALS
        if (measured := [r for name in names if (r := _ratio(rates, OURS, name)) is not None])
    ]


def report(
    durability: str, outlives: str, found: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]]
) -> None:
    """Tables for people."""
    print_line(f"durability {durability}: {outlives}")
    titles = (
        "contestant",
        "keeps",
        "jobs/s",
        "slowest",
        "fastest",
        "CPU ms/job",
        "h2kbus is x times",
        "x of the bare loop",
    )
    rows = [(name, KEEPS[name], *map(_cell, each.values())) for name, each in found.items()]
    print_table(titles, rows)
    for each in wanted:
        word = "met" if each["met"] else "missed"
        print_line(f"{each['measured']} times {each['beside']}; wanted {each['wanted']}: {word}")
    print_line("")


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _ratio(rates: Rates, over: str, under: str) -> float | None:
    """The median of the rounds' ratios: both sides of each were measured within the same minutes."""
    if over not in rates or under not in rates:
        return None
    pairs = zip(rates[over], rates[under], strict=True)
    return round(statistics.median(ours / theirs for ours, theirs in pairs), 2)
