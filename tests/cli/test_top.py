"""The live screen: what it shows, the keys that steer it, and that it fits every terminal."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import strategies as st
from rich.console import Console

from h2kbus.cli.top.board import Board, Running
from h2kbus.cli.top.keys import split
from h2kbus.cli.top.screen import Look, Screen, shares
from h2kbus.cli.top.tail import Tail
from h2kbus.client import Bus
from tests.conftest import Program

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A program on a terminal of its own, as a person sees and steers it."""

    def __init__(self, master: int, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._master = master
        self._seen = ""

    def press(self, keys: str) -> None:
        self._seen = ""
        os.write(self._master, keys.encode())

    def shows(self, words: str, seconds: float = 20.0) -> bool:
        """Whether the words come within that time."""
        until = time.monotonic() + seconds
        while words not in self._seen and time.monotonic() < until:
            if select.select([self._master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self._seen += ESCAPES.sub("", os.read(self._master, 65536).decode("utf-8", "replace"))
        return words in self._seen


@contextlib.contextmanager
def on_terminal(program: Program, *words: object, columns: int = 120) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        program.argv(*words), stdin=slave, stdout=slave, stderr=slave, close_fds=True,
        env={**program.environment, "TERM": "xterm-256color"}, cwd=program.place, start_new_session=True,
    )  # fmt: skip
    try:
        yield Terminal(master, process)
        assert termios.tcgetattr(slave) == before, "the terminal was not left as it was found"
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)


@pytest.mark.slow
def test_job_is_seen_and_cancelled_by_a_key(local: Program) -> None:
    words = ("--operation", "rehearse", "--image", "/images/top.vmdk", "--output-dir", "out")
    job_id = local("submit", *words, "--set", "seconds=40").stdout.strip()
    with on_terminal(local, "top", "--filter", job_id) as terminal:
        assert terminal.shows(job_id)
        assert terminal.shows("rehearse")
        terminal.press("c")
        assert terminal.shows(f"cancel {job_id}? y or n")
        terminal.press("y")
        assert terminal.shows(f"{job_id}: cancellation requested")
        assert terminal.shows("CANCELLED")
        terminal.press("q")
        assert terminal.process.wait(10) == 0


@pytest.mark.slow
def test_log_of_a_job_is_shown_by_a_key_while_it_is_written(local: Program) -> None:
    words = ("--operation", "rehearse", "--image", "/images/top.vmdk", "--output-dir", local.place / "top")
    lines = json.dumps([f"said {number}" for number in range(100)])
    job_id = local("submit", *words, "--set", f"log_lines={lines}", "--set", "log_pause=0.4").stdout.strip()
    with on_terminal(local, "top", "--filter", job_id) as terminal:
        assert terminal.shows("rehearse")
        terminal.press("l")
        assert terminal.shows(f"log of {job_id}")
        assert terminal.shows("said 4")
        assert terminal.shows("said 9")
        terminal.press("l")
        assert terminal.shows("LAST ENDS")
        terminal.press("c")
        assert terminal.shows(f"cancel {job_id}? y or n")
        terminal.press("y")
        assert terminal.shows("CANCELLED")
        terminal.press("q")
        assert terminal.process.wait(10) == 0


@pytest.mark.slow
def test_ctrl_c_leaves_the_terminal_as_it_was(local: Program) -> None:
    with on_terminal(local, "top", columns=40) as terminal:
        assert terminal.shows("WORKER")
        os.killpg(terminal.process.pid, signal.SIGINT)
        assert terminal.process.wait(10) == 130


def test_without_a_terminal_it_is_shown_once(local: Program) -> None:
    done = local("top")
    assert done.returncode == 0
    assert "CAPABILITIES" not in done.stdout.splitlines()[0]
    assert "WORKER" in done.stdout


def test_programs_get_one_object(local: Program) -> None:
    found = json.loads(local("top", "--json").stdout)
    assert found.keys() == {"lanes", "workers", "running"}
    assert found["workers"][0]["worker_id"]


@hypothesis.given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(-3, 100))
def test_sections_get_what_there_is_room_for(wanted: list[int], rows: int) -> None:
    given = shares(wanted, rows)
    assert sum(given) == min(sum(wanted), max(rows, 0))
    assert all(have <= want for have, want in zip(given, wanted, strict=True))


def test_keys_that_come_together_are_told_apart() -> None:
    assert split("j\x1b[A\x1b[B\x1b[15~q\r\x7f/") == ["j", "up", "down", "q", "enter", "backspace", "/"]


def test_escape_alone_is_a_key() -> None:
    assert split("\x1b") == ["escape"]


@pytest.mark.anyio
@pytest.mark.parametrize(("columns", "rows"), [(40, 12), (40, 24), (80, 24), (200, 50), (20, 5)])
async def test_screen_never_outgrows_its_terminal(bus: Bus, columns: int, rows: int) -> None:
    board = Board(bus)
    for number in range(60):
        board._running[f"j{number}"] = Running(
            job_id=f"job-{number}" * 9, image="\x1b[31m/disk", phase="convert"
        )
    console = Console(width=columns, height=rows, force_terminal=True)
    with console.capture() as captured:
        console.print(Screen(board, Look(chosen=40), "nats://127.0.0.1:4222"), end="")
    lines = ESCAPES.sub("", captured.get()).splitlines()
    assert max(len(each) for each in lines) <= columns
    assert len(lines) <= max(rows, 11)


@pytest.mark.anyio
@pytest.mark.parametrize(("columns", "rows"), [(40, 12), (200, 50), (20, 5), (20, 2)])
async def test_log_never_outgrows_its_terminal_and_drives_it_not(bus: Bus, columns: int, rows: int) -> None:
    tail = Tail("job-1")
    tail._take(b"\n".join(b"\x1b[31m line %d of many words, some \xff" % number * 9 for number in range(90)))
    console = Console(width=columns, height=rows, force_terminal=True)
    with console.capture() as captured:
        console.print(Screen(Board(bus), Look(), "nats://127.0.0.1:4222", tail), end="")
    lines = ESCAPES.sub("", captured.get()).splitlines()
    assert max(len(each) for each in lines) <= columns
    assert len(lines) <= max(rows, 3)
    assert "\x1b[31m" not in captured.get()


@pytest.mark.anyio
async def test_what_comes_from_others_cannot_drive_the_terminal(bus: Bus) -> None:
    board = Board(bus)
    board._running["j"] = Running(job_id="j", operation="\x1b]0;owned\x07", phase="\x1b[2J")
    console = Console(width=120, height=30, force_terminal=True)
    with console.capture() as captured:
        console.print(Screen(board, Look(), "nats://127.0.0.1:4222"))
    assert "\x1b]0;" not in captured.get()
    assert "\x1b[2J" not in captured.get()


def test_filter_wants_every_word() -> None:
    job = Running(job_id="j1", image="/esx-07/disk.vmdk", operation="convert")
    assert job.matches("ESX-07 convert")
    assert not job.matches("esx-07 inspect")
