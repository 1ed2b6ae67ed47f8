"""What others wrote reaches no terminal and no log as anything but text."""

import io
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from h2kbus.cli import follow
from h2kbus.cli.exits import say
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.logs import ConsoleFormatter
from subjects.codec import convert, encode
from subjects.events import ProgressEvent
from tests.conftest import Program, environment, read_ready
from workers.joblog import TAIL_BYTES, JobLog

OWNED = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\n[bold]x[/nothing]"
HOSTILE = st.text(max_size=30) | st.sampled_from([OWNED, "\x9b2J", "\x7f", "a\u2028b"])


def control_characters(shown: str) -> set[str]:
    return {each for each in shown if not each.isprintable()} - {"\n"}


@given(HOSTILE)
def test_nothing_that_is_printed_drives_a_terminal(text: str) -> None:
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    try:
        print_line(text)
        print_table(["A"], [[text]])
        print_json({text: [text]})
        say(text)
        shown = sys.stdout.getvalue() + sys.stderr.getvalue()
    finally:
        sys.stdout, sys.stderr = out, err
    assert control_characters(shown) == set()


@given(HOSTILE)
def test_escaped_json_says_the_same(text: str) -> None:
    out = sys.stdout
    sys.stdout = io.StringIO()
    try:
        print_json({"a": text})
        shown = sys.stdout.getvalue()
    finally:
        sys.stdout = out
    assert json.loads(shown) == {"a": text}


@given(HOSTILE)
def test_log_record_is_one_line_of_text(text: str) -> None:
    record = logging.LogRecord("h2kbus", logging.INFO, "", 0, "job %s", (text,), None)
    shown = ConsoleFormatter().format(record)
    assert control_characters(shown) == set()
    assert "\n" not in shown


def test_traceback_in_a_log_keeps_its_lines_and_nothing_else() -> None:
    with pytest.raises(ValueError, match="owned") as caught:
        int(OWNED)
    defect = (caught.type, caught.value, caught.tb)
    record = logging.LogRecord("h2kbus", logging.ERROR, "", 0, "defect", (), defect)
    shown = ConsoleFormatter().format(record)
    assert "Traceback" in shown
    assert control_characters(shown) == set()


def event(**more: Any) -> ProgressEvent:
    facts = {"job_id": "a", "seq": 1, "timestamp": "2026-03-01T12:00:00Z", "state": "RUNNING", "phase": "x"}
    return convert(ProgressEvent, {**facts, "progress_percent": 1.0, **more})


@pytest.mark.parametrize("field", ["phase", "message"])
def test_event_of_another_worker_is_shown_as_text(field: str) -> None:
    assert control_characters(follow.describe(event(**{field: OWNED}))) == set()


def test_event_with_markup_does_not_break_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(follow, "Console", lambda **_: Console(file=screen, force_terminal=True, width=200))
    with follow.live_view() as view:
        view.show(event(phase="[/nothing]", message="[link=file:///etc/passwd]here[/link]"))
    assert "[/nothing] [link=file:///etc/passwd]here[/link]" in screen.getvalue()


def test_line_of_a_job_log_is_one_line_of_text(tmp_path: Path) -> None:
    with JobLog(tmp_path / "log") as log:
        log.line(OWNED)
    text = (tmp_path / "log").read_text()
    assert control_characters(text) == set()


def test_flood_in_a_job_log_ends_at_its_limit(tmp_path: Path) -> None:
    with JobLog(tmp_path / "log", limit_bytes=10_000) as log:
        for _ in range(1000):
            log.line("x" * 1000)
        assert log.path.stat().st_size <= 10_200
    assert log.path.stat().st_size <= 10_200 + TAIL_BYTES + 100


@pytest.mark.slow
def test_hostile_names_pass_the_whole_road_as_text(tmp_path: Path) -> None:
    """Through a real bus: the words of commands, the log of the processes, and the log of the job."""
    program = Program(environment(HOME=str(tmp_path), USER="tester"), tmp_path)
    job = {
        "job_id": "owned", "operation": "inspect", "image": {"path": f"/{OWNED}"},
        "artifacts": {"output_path": str(tmp_path / "out")},
        "audit": {"requested_by": OWNED, "ticket": OWNED, "tags": {OWNED: OWNED}},
    }  # fmt: skip
    (tmp_path / "job.json").write_bytes(encode(job))
    with program.started("up", "--json", "--port", "0", "--data-dir", tmp_path / "data", "--verbose") as up:
        program.environment["H2KBUS_URL"] = read_ready(up)["url"]
        commands = (["submit", "--wait", "job.json"], ["status", "owned"], ["ls"], ["watch", "owned"])
        shown = [program(*words, *more) for words in commands for more in ((), ("--json",))]
        up.send_signal(signal.SIGINT)
        up.wait(30)
        assert up.stdout is not None
        assert up.stderr is not None
        told = [up.stdout.read(), up.stderr.read()]
    told += [text for each in shown for text in (each.stdout, each.stderr)]
    told.append((tmp_path / "out" / "owned.log").read_text())
    assert any("owned" in text for text in told)
    assert [control_characters(text) for text in told] == [set()] * len(told)
