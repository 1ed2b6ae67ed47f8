"""`up`, `worker`, `scheduler` and `run`: how they start, drain and end."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from subjects.codec import encode
from tests.conftest import REHEARSE, Program, environment, read_ready, rehearsal

pytestmark = pytest.mark.slow


@pytest.fixture
def alone(tmp_path: Path) -> Program:
    """The program on a machine where no bus runs yet."""
    return Program(environment(HOME=str(tmp_path), USER="tester"), tmp_path)


@contextlib.contextmanager
def up(alone: Program, *more: object) -> Iterator["subprocess.Popen[str]"]:
    with alone.started("up", "--json", "--port", "0", "--data-dir", alone.place / "data", *more) as process:
        alone.environment["H2KBUS_URL"] = read_ready(process)["url"]
        yield process


def submit(program: Program, *words: object, **job: object) -> "subprocess.CompletedProcess[str]":
    file = program.place / "job.json"
    file.write_bytes(encode(rehearsal(**job)))
    return program("submit", file, *words)


def children(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not alive


def test_up_says_on_one_json_line_where_it_is(alone: Program) -> None:
    words = ("up", "--json", "--port", "0", "--data-dir", alone.place / "data", "--workers", "2")
    with alone.started(*words) as process:
        ready = read_ready(process)
        assert set(ready) == {"url", "websocket", "data_dir", "workers"}
        assert ready["url"].startswith("nats://127.0.0.1:")
        assert ready["websocket"].startswith("ws://127.0.0.1:")
        assert ready["data_dir"] == str(alone.place / "data")
        alive = alone("workers", "--json", "--url", ready["url"]).stdout.splitlines()
        assert sorted(json.loads(line)["worker_id"] for line in alive) == sorted(ready["workers"])


def test_another_user_of_the_machine_is_refused(alone: Program, tmp_path: Path) -> None:
    with up(alone):
        other = Program({**alone.environment, "HOME": str(tmp_path / "other")}, tmp_path)
        done = other("workers")
        assert done.returncode == 3
        assert "PERMISSION_DENIED" in done.stderr


def test_up_shows_its_token_to_nobody(alone: Program) -> None:
    with alone.started("up", "--json", "--port", "0", "--data-dir", alone.place / "data") as process:
        ready = read_ready(process)
        token = (alone.place / "data" / "token").read_text()
        running = [psutil.Process(process.pid), *children(process)]
        argv = [word for each in running for word in each.cmdline()]
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=15)
        assert token not in json.dumps(ready) + " ".join(argv) + told


def test_up_without_workers_accepts_jobs(alone: Program) -> None:
    with up(alone, "--workers", "0", "--operations", REHEARSE):
        done = submit(alone, "--json")
        assert json.loads(done.stdout)["state"] == "QUEUED"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_up_cleanly_and_leaves_no_process(alone: Program, number: signal.Signals) -> None:
    with up(alone) as process:
        started = children(process)
        assert [each.name() for each in started] == ["nats-server"]
        process.send_signal(number)
        assert process.wait(15) == 0
        assert gone(started)


def test_up_lets_a_running_job_end_before_it_ends(alone: Program) -> None:
    mark = alone.place / "mark"
    with up(alone, "--operations", REHEARSE) as process:
        submit(alone, job_id="runs", seconds=2, mark=str(mark))
        wait_for(mark)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
    with up(alone, "--workers", "0"):
        assert json.loads(alone("status", "--json", "runs").stdout)["state"] == "COMPLETED"


def wait_for(file: Path) -> None:
    until = time.monotonic() + 10
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_second_signal_ends_up_at_once_and_the_job_is_not_lost(alone: Program) -> None:
    mark = alone.place / "mark"
    with up(alone, "--operations", REHEARSE) as process:
        submit(alone, job_id="cut-off", seconds=50, mark=str(mark))
        wait_for(mark)
        started = children(process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("draining" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert gone(started)
    with up(alone, "--workers", "0"):
        state = json.loads(alone("status", "--json", "cut-off").stdout)["state"]
        assert state in ("RUNNING", "PROGRESSING", "RETRYING", "QUEUED")


def test_killed_up_takes_its_server_with_it(alone: Program) -> None:
    with up(alone) as process:
        started = children(process)
        os.kill(process.pid, signal.SIGKILL)
        assert gone(started)


def test_jobs_survive_a_restart(alone: Program) -> None:
    with up(alone, "--workers", "0", "--operations", REHEARSE):
        submit(alone, job_id="kept")
    with up(alone, "--operations", REHEARSE):
        assert alone("watch", "kept").returncode == 0


def test_port_that_is_taken_is_named(alone: Program) -> None:
    with up(alone):
        port = alone.environment["H2KBUS_URL"].rpartition(":")[2]
        done = alone("up", "--port", port, "--data-dir", alone.place / "other")
        assert done.returncode == 3
        assert f"port {port} is in use" in done.stderr


def test_directory_that_is_in_use_is_refused(alone: Program) -> None:
    with up(alone):
        done = alone("up", "--port", "0", "--data-dir", alone.place / "data")
        assert done.returncode == 3
        assert "is in use by process" in done.stderr


def test_worker_and_scheduler_of_their_own_do_a_job(program: Program) -> None:
    with (
        program.started("scheduler", "--operations", REHEARSE),
        program.started("worker", "--operations", REHEARSE, "--id", "own"),
    ):
        wait_for_streams(program)
        done = submit(program, "--wait", "--json")
        assert json.loads(done.stdout)["worker_id"] == "own"


def wait_for_streams(program: Program) -> None:
    until = time.monotonic() + 15
    while program("workers", "--json").stdout == "":
        assert time.monotonic() < until


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_sigterm_drains_a_process(program: Program, role: str) -> None:
    with program.started("scheduler"), program.started(role) as process:
        assert process.stderr is not None
        assert any("is ready" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_run_needs_no_server(alone: Program) -> None:
    image = alone.place / "disk.img"
    image.write_bytes(os.urandom(1 << 20))
    done = alone("run", "--operation", "inspect", "--image", image, "--output-dir", "out")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith(".report.json")
    [report] = (alone.place / "out").glob("*.report.json")
    assert json.loads(report.read_bytes())["image"]["format"] == "raw"


def test_run_of_an_invalid_job_is_exit_2(alone: Program) -> None:
    done = alone("run", "--operation", "frob", "--image", "x", "--output-dir", "out")
    assert done.returncode == 2
    assert "unknown operation" in done.stdout


def test_ctrl_c_cancels_a_run(alone: Program) -> None:
    mark = alone.place / "mark"
    words = (
        "run", "--json", "--operations", REHEARSE, "--operation", "rehearse", "--image", "x",
        "--output-dir", "out", "--set", "seconds=50", "--set", f"mark={mark}",
    )  # fmt: skip
    with alone.started(*words) as process:
        wait_for(mark)
        started = children(process)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=15)
        assert json.loads(out)["state"] == "CANCELLED"
        assert process.returncode == 1
        assert gone(started)
