"""Bars for jobs that are followed: what they say, and that they fit."""

import datetime as dt
import io
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from h2kbus.cli.follow import Bars, columns_for
from h2kbus.cli.rate import Mark, in_bytes
from subjects.events import ProgressEvent
from subjects.states import State

MIB = 1 << 20


def event(state: State = State.PROGRESSING, **more: Any) -> ProgressEvent:
    given = {"job_id": "job-1", "seq": 1, "phase": "convert", "progress_percent": 40.0, **more}
    return ProgressEvent(timestamp=dt.datetime.now(dt.UTC), state=state, **given)


def shown(*events: ProgressEvent, width: int = 120, phases: bool = True) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=True, color_system=None)
    with Progress(*columns_for(width), console=console, auto_refresh=False) as progress:
        bars = Bars(progress, phases=phases)
        for each in events:
            bars.show(each)
        progress.refresh()
    return text.getvalue().rpartition("\x1b[2K")[2] or text.getvalue()


def test_each_phase_has_a_bar_of_its_own() -> None:
    text = shown(event(phase="probe", phase_percent=100.0), event(phase_percent=25.0, progress_percent=30.0))
    assert "  probe" in text
    assert "25%" in text
    assert "30%" in text


def test_phase_that_another_one_follows_is_full() -> None:
    text = shown(event(phase="probe"), event(phase="check", phase_percent=1.0))
    [line] = [each for each in text.splitlines() if each.startswith("  probe")]
    assert "100%" in line


def test_phase_that_does_not_say_how_far_it_is_has_no_percent() -> None:
    [line] = [each for each in shown(event()).splitlines() if each.startswith("  convert")]
    assert "%" not in line


def test_several_jobs_have_one_bar_each() -> None:
    text = shown(event(), event(job_id="job-2"), phases=False)
    assert "  convert" not in text.splitlines()[0][:10]
    assert "job-1" in text
    assert "job-2" in text


@pytest.mark.parametrize("width", [20, 40, 60, 99, 100, 200])
def test_bars_fit_the_terminal(width: int) -> None:
    text = shown(event(job_id="j" * 60, message="m" * 300, phase_percent=5.0), width=width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())


def test_rate_is_bytes_over_the_time_between_two_events() -> None:
    first = Mark("convert", 10 * MIB, 1.0)
    assert first.moved(event(bytes_done=30 * MIB), now=3.0).rate == 10 * MIB


def test_rate_stands_while_nothing_moves_and_ends_with_the_phase() -> None:
    moving = Mark("convert", 10 * MIB, 1.0, rate=5.0)
    assert moving.moved(event(bytes_done=10 * MIB), now=2.0).rate == 5.0
    assert moving.moved(event(phase="compare", bytes_done=20 * MIB), now=2.0).rate is None


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (5 * MIB, "5.0 MiB"),
        (300 * MIB, "300 MiB"),
        (1 << 51, "2048.00 TiB"),
    ],
)
def test_bytes_are_told_in_three_digits(count: int, words: str) -> None:
    assert in_bytes(count) == words
