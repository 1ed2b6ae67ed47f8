"""Logs: one line for each message, whatever it holds, with the job and the worker that it is about."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2kbus.cli.exits import say
from h2kbus.logs import JsonFormatter, LogFormat, bound, set_up_logging, trace_id

SECRET = "hunter2"


class Written:
    """What was logged, as it was written."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Set logging up as a process does; what it was before comes back."""
    root, hook = logging.getLogger(), sys.excepthook
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("nats", "asyncio")}
    stream = io.StringIO()

    def begin(log_format: LogFormat = LogFormat.JSON, *, verbose: bool = False) -> Written:
        root.handlers[:] = []
        monkeypatch.setattr(sys, "stderr", stream)
        set_up_logging(log_format, verbose=verbose)
        return Written(stream)

    yield begin
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(capture=False)
    sys.excepthook = hook


def fail(error: Exception) -> None:
    raise error


def test_line_says_when_who_and_what(start: Any) -> None:
    written = start()
    logging.getLogger("h2kbus.worker").warning("cannot pull jobs: %s", "made up")
    [line] = written.lines
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {"level": "WARNING", "logger": "h2kbus.worker", "message": "cannot pull jobs: made up"}


HOSTILE = ["a\nb", "\x1b[2J\x07", "\r\0", "\u2028\u2029\x85", "\udc80", "ü", '"}', "\x7f", "\u202e"]


@pytest.mark.parametrize("text", HOSTILE)
def test_message_stays_on_its_line_and_drives_no_terminal(start: Any, text: str) -> None:
    written = start()
    logging.getLogger("h2kbus").info("before %s after", text)
    assert written.text.isascii()
    assert written.text.rstrip("\n").isprintable()
    assert [each["message"] for each in written.lines] == [f"before {text} after"]


@pytest.mark.parametrize("text", HOSTILE)
def test_message_for_people_stays_on_its_line_and_drives_no_terminal(start: Any, text: str) -> None:
    written = start(LogFormat.CONSOLE)
    logging.getLogger("h2kbus").info("before %s after", text)
    [line] = written.text.splitlines()
    assert line.isprintable()


def test_console_looks_as_it_always_did(start: Any) -> None:
    written = start(LogFormat.CONSOLE)
    logging.getLogger("h2kbus.worker").info("told to take jobs again")
    assert written.text.endswith(" INFO h2kbus.worker: told to take jobs again\n")


def test_defect_is_one_line_with_its_trace(start: Any) -> None:
    written = start()
    try:
        fail(ZeroDivisionError("made\nup"))
    except ZeroDivisionError:
        logging.getLogger("h2kbus").exception("a defect")
    [line] = written.lines
    assert line["message"] == "a defect"
    assert "ZeroDivisionError: made\nup" in line["exception"]


def test_defect_that_ends_the_process_is_a_line_too(start: Any) -> None:
    written = start()
    try:
        fail(ZeroDivisionError("made up"))
    except ZeroDivisionError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert [each["level"] for each in written.lines] == ["CRITICAL"]


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_password_in_an_address_is_left_out(start: Any, log_format: LogFormat) -> None:
    written = start(log_format)
    log = logging.getLogger("nats")
    log.critical("cannot reach %s", f"nats://ann:{SECRET}@10.0.0.1:4222,tls://{SECRET}@b:4222")
    try:
        fail(OSError(f"wss://ann:p@{SECRET}@10.0.0.1"))
    except OSError:
        log.critical("refused", exc_info=True)
    assert SECRET not in written.text
    assert "10.0.0.1:4222" in written.text


def test_ids_are_on_what_is_logged_inside_and_not_on_what_follows(start: Any) -> None:
    written, log = start(), logging.getLogger("h2kbus")
    with bound(worker_id="w1"), bound(job_id="j1", attempt=2, trace_id=None):
        log.info("inside")
    log.info("outside")
    inside, outside = written.lines
    assert (inside["worker_id"], inside["job_id"], inside["attempt"]) == ("w1", "j1", 2)
    assert "trace_id" not in inside
    assert outside.keys() & {"worker_id", "job_id", "attempt"} == set()


@pytest.mark.anyio
async def test_tasks_keep_their_own_ids_apart(start: Any) -> None:
    written, log = start(), logging.getLogger("h2kbus")

    async def work(job_id: str) -> None:
        with bound(job_id=job_id):
            for _ in range(3):
                log.info("about %s", job_id)
                await anyio.sleep(0)

    with bound(worker_id="w1"):
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(work, f"job-{number}")
    assert len(written.lines) == 15
    assert all(each["message"] == f"about {each['job_id']}" for each in written.lines)
    assert {each["worker_id"] for each in written.lines} == {"w1"}


def test_words_of_the_program_are_lines_of_the_log(start: Any) -> None:
    """What a service says on stderr must not break its log."""
    written = start()
    say("worker w1 is ready;\n Ctrl-C drains it")
    assert [each["message"] for each in written.lines] == ["worker w1 is ready; Ctrl-C drains it"]


@pytest.mark.parametrize(("verbose", "count"), [(False, 1), (True, 2)])
def test_details_are_logged_only_if_asked_for(start: Any, verbose: bool, count: int) -> None:
    written = start(verbose=verbose)
    logging.getLogger("h2kbus").debug("a detail")
    logging.getLogger("h2kbus").info("a fact")
    assert len(written.lines) == count


@given(st.text())
def test_any_message_is_one_line_that_can_be_parsed(text: str) -> None:
    record = logging.LogRecord("h2kbus", logging.INFO, "", 0, "%s", (text,), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert isinstance(json.loads(line)["message"], str)


def test_trace_id_is_the_one_of_the_trace_context() -> None:
    assert trace_id("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") == (
        "0af7651916cd43dd8448eb211c80319c"
    )
    assert trace_id(None) is None
