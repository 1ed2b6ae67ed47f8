"""The tutorial is one session of a shell: its commands run in order, and print what it shows."""

import contextlib
import os
import re
import signal
import socket
import subprocess

import pytest

from tests.conftest import REPOSITORY, environment
from tests.test_docs import make_only_shown

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
STEPS = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "=== step "
VOLATILE = (
    (re.compile(r"\b[0-9a-hjkmnp-tv-z]{20}\b"), "ID"),
    (re.compile(r"\d[\d.:TZ-]*"), "N"),
    (re.compile(r"\b[BKMG]i?B?\b"), "B"),
    (re.compile(r" +"), " "),
)


def shown() -> list[tuple[str, list[str]]]:
    """Each block of commands, and the lines that the tutorial shows of what it prints."""
    steps: list[tuple[str, list[str]]] = []
    for kind, text in STEPS.findall(TUTORIAL.read_text()):
        if kind == "sh":
            steps.append((text, []))
        else:
            steps[-1][1].extend(text.splitlines())
    return steps


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def session(bus: int, pages: int) -> str:
    """All commands as one script. Only the ports are others: somebody may have a bus on this machine."""
    script = "".join(f"echo '{MARK}{number}'\n{text}" for number, (text, _) in enumerate(shown()))
    script = script.replace("h2kbus up ", f"h2kbus up --port {bus} --websocket-port {pages} ")
    script = script.replace(
        "h2kbus dashboard ", f"h2kbus dashboard --port 0 --websocket ws://127.0.0.1:{pages} "
    )
    return make_only_shown(script)


def alike(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, word in VOLATILE:
        line = pattern.sub(word, line)
    return line.strip()


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each step of one whole session printed."""
    place, bus = tmp_path_factory.mktemp("newcomer"), free_port()
    path = f"{REPOSITORY / '.venv' / 'bin'}:{environment()['PATH']}"
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", session(bus, free_port())],
        cwd=place, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(HOME=str(place), USER="you", PATH=path, H2KBUS_URL=f"nats://127.0.0.1:{bus}"),
    ) as shell:  # fmt: skip
        try:
            output, _ = shell.communicate(timeout=500)
        finally:
            # A session that was cut short leaves its bus and its workers behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, output[-4000:]
    assert [each.name for each in place.iterdir() if not each.name.startswith(".")] == []
    return re.split(rf"^{MARK}\d+\n", output, flags=re.MULTILINE)[1:]


def test_whole_session_runs_and_every_step_prints_what_is_shown(printed: list[str]) -> None:
    assert len(printed) == len(shown())
    for (commands, expected), output in zip(shown(), printed, strict=True):
        lines = [alike(line) for line in output.splitlines()]
        for line in expected:
            beginning = alike(line.partition("…")[0])
            assert any(each.startswith(beginning) for each in lines), f"{line!r}\n{commands}\n{output}"


def test_killed_workers_job_is_completed_by_the_other(printed: list[str]) -> None:
    [record] = [
        text
        for (commands, _), text in zip(shown(), printed, strict=True)
        if commands == "h2kbus status $ID\n"
    ]
    assert re.search(r"^attempt: +2$", record, re.MULTILINE)
    assert re.search(r" RUNNING +red\b", record)
    assert re.search(r" COMPLETED +blue\b", record)
