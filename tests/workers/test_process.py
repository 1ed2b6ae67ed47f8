import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from workers.joblog import MAX_LOG_BYTES, TAIL_BYTES, JobLog
from workers.limits import ToolLimits
from workers.process import ToolRunner
from workers.sandbox import Allowance

pytestmark = pytest.mark.anyio


MIB = 1 << 20


@pytest.fixture(params=[False, True], ids=["limits-only", "confined"])
def tools(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ToolRunner]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with JobLog(tmp_path / "job.log") as log:
        yield ToolRunner(log, scratch, grace_seconds=0.3, confined=request.param)


@pytest.fixture
def marked() -> str:
    """A time to sleep, in seconds, that tells a process of this test from all others."""
    return f"60.{uuid.uuid4().int}"


def alive(marked: str) -> list[int]:
    """The processes that sleep for this time; a process in a sandbox has another number in there."""
    return [
        each.pid
        for each in psutil.process_iter(["cmdline"])
        if marked in (words := each.info["cmdline"] or []) and Path(words[0]).name == "sleep"
    ]


async def gone(marked: str) -> bool:
    with anyio.move_on_after(5):
        while alive(marked):
            await anyio.sleep(0.01)
    return not alive(marked)


async def test_lines_end_at_carriage_returns_too(tools: ToolRunner) -> None:
    lines: list[str] = []
    await tools.run(["printf", r"(1/100%%)\r(2/100%%)\rdone\n"], on_output=lines.append)
    assert lines == ["(1/100%)", "(2/100%)", "done"]


async def test_output_is_kept_in_the_log(tools: ToolRunner) -> None:
    await tools.run(["sh", "-c", "echo out; echo err >&2"])
    text = tools.log.path.read_text()
    assert "out" in text
    assert "err" in text


@pytest.mark.slow
async def test_endless_output_does_not_fill_memory(tools: ToolRunner) -> None:
    output = await tools.run(["sh", "-c", "yes | head -c 3000000"], capture_limit=1000)
    assert output.truncated
    assert len(output.stdout) == 1000


async def test_failure_carries_the_tools_last_words(tools: ToolRunner) -> None:
    with pytest.raises(OperationFailed, match="sh failed with status 3: it is broken") as caught:
        await tools.run(["sh", "-c", "echo first >&2; echo it is broken >&2; exit 3"])
    assert caught.value.error_code is ErrorCode.TOOL_FAILED


async def test_full_disk_is_told_apart(tools: ToolRunner) -> None:
    with pytest.raises(OperationFailed) as caught:
        await tools.run(["sh", "-c", "echo 'write: No space left on device' >&2; exit 1"])
    assert caught.value.error_code is ErrorCode.NO_SPACE


async def test_missing_tool_is_named(tools: ToolRunner) -> None:
    with pytest.raises(OperationFailed, match="no-such-tool") as caught:
        await tools.run(["no-such-tool"])
    assert caught.value.error_code is ErrorCode.TOOL_MISSING


async def test_killing_signal_is_named(tools: ToolRunner) -> None:
    with pytest.raises(OperationFailed, match="SIGSEGV"):
        await tools.run(["sh", "-c", "kill -SEGV $$"])


async def test_time_out_ends_the_tool(tools: ToolRunner) -> None:
    with pytest.raises(OperationFailed, match="did not finish"):
        await tools.run(["sleep", "60"], timeout=0.1)


async def test_address_space_limit_holds(tools: ToolRunner) -> None:
    allowance = Allowance(limits=ToolLimits(address_space_bytes=64 << 20))
    with pytest.raises(OperationFailed):
        await tools.run(["/usr/bin/python3", "-c", "bytearray(1 << 28)"], allowance=allowance)


async def test_environment_is_not_handed_down(tools: ToolRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "value")
    output = await tools.run(["env"])
    assert b"SECRET" not in output.stdout


async def test_cancelling_kills_the_whole_group_even_if_it_ignores_sigterm(
    tools: ToolRunner, marked: str
) -> None:
    seen: list[int] = []
    with anyio.CancelScope() as scope:

        def note(_: str) -> None:
            seen.extend(alive(marked))
            scope.cancel()

        script = f"trap '' TERM; sleep {marked} & sleep {marked} & sleep 0.2; echo started; wait"
        await tools.run(["sh", "-c", script], on_output=note)
    assert scope.cancelled_caught
    assert len(seen) == 2
    assert alive(marked) == []


async def test_tool_is_asked_to_end_before_it_is_killed(tools: ToolRunner) -> None:
    with anyio.CancelScope() as scope:
        script = "trap 'echo asked > asked; exit' TERM; echo started; while :; do sleep 0.01; done"
        await tools.run(["sh", "-c", script], on_output=lambda _: scope.cancel())
    assert (tools.scratch / "asked").read_text() == "asked\n"


async def test_forgotten_child_does_not_outlive_its_tool(tools: ToolRunner, marked: str) -> None:
    await tools.run(["sh", "-c", f"sleep {marked} &"])
    assert await gone(marked)


async def test_bytes_are_counted_though_the_tool_is_gone(tools: ToolRunner) -> None:
    output = await tools.run(["dd", "if=/dev/zero", "of=copy", "bs=1M", "count=5", "status=none"])
    assert 5 * MIB <= output.read_bytes < 6 * MIB
    assert 5 * MIB <= output.written_bytes < 6 * MIB


@pytest.mark.parametrize("confined", [False, True], ids=["limits-only", "confined"])
async def test_tool_dies_with_a_killed_worker(tmp_path: Path, marked: str, confined: bool) -> None:
    script = (
        "import anyio, sys\n"
        "from pathlib import Path\n"
        "from workers.joblog import MAX_LOG_BYTES, TAIL_BYTES, JobLog\n"
        "from workers.process import ToolRunner\n"
        "place = Path(sys.argv[1])\n"
        "tools = ToolRunner(JobLog(place / 'log'), place, confined=sys.argv[3] == 'True')\n"
        "anyio.run(tools.run, ['sleep', sys.argv[2]])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    worker = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, marked, str(confined)], env=environment
    )
    deadline = time.monotonic() + 20
    while not alive(marked) and time.monotonic() < deadline:
        await anyio.sleep(0.02)
    assert alive(marked)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert await gone(marked)


async def test_log_stops_at_its_limit_and_says_so(tmp_path: Path) -> None:
    with JobLog(tmp_path / "log", limit_bytes=1000) as log:
        for _ in range(100):
            log.line("x" * 50)
        lines = log.path.read_text().splitlines()
        assert "truncated" in lines[-1]
        assert len(lines) < 20


@pytest.mark.slow
async def test_log_of_100_megabytes_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    with JobLog(tmp_path / "log") as log:
        for number in range(26_000):
            log.line(f"{number} {'x' * 4000}")
    lines = log.path.read_text().splitlines()
    [gap] = [at for at, each in enumerate(lines) if each.endswith("lines are left out here")]
    assert [int(each.split()[1]) for each in lines[: gap - 1]] == list(range(gap - 1))
    last = [int(each.split()[1]) for each in lines[gap + 1 :]]
    assert last == list(range(26_000 - len(last), 26_000))
    assert int(lines[gap].split()[1]) == 26_000 - len(last) - (gap - 1)
    assert log.path.stat().st_size <= MAX_LOG_BYTES + 2 * TAIL_BYTES


async def test_later_attempt_keeps_its_end_in_a_log_that_is_full(tmp_path: Path) -> None:
    with JobLog(tmp_path / "log", limit_bytes=1000) as log:
        for number in range(100):
            log.line(f"0.{number}")
    with JobLog(tmp_path / "log", limit_bytes=1000) as log:
        for number in range(100):
            log.line(f"1.{number}")
    lines = log.path.read_bytes()[log.began :].decode().splitlines()
    assert lines[-1].endswith("1.99")
    assert not any(each.endswith("0.99") for each in lines)


async def test_log_shows_control_characters_as_escapes(tmp_path: Path) -> None:
    with JobLog(tmp_path / "log") as log:
        log.line("\x1b[2Jgone")
    assert r"\x1b[2Jgone" in log.path.read_text()
