"""Servers that we cannot work with, and servers that go away: told by name, and come back from."""

import contextlib
import datetime as dt
import functools
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

import h2kbus
from h2kbus.connection import connect
from h2kbus.plugins import load_catalog
from h2kbus.settings import ConnectionSettings
from scheduler.service import Scheduler
from subjects.grammar import Grammar
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import REHEARSE, REPOSITORY, Program, environment, rehearsal, worker_profile
from tests.servers import start_server, wheel_server
from workers.service import Worker

OLD_SERVER = REPOSITORY / ".venv" / "share" / "old-nats-server" / "bin" / "nats-server"


@contextlib.contextmanager
def server(binary: Path, place: Path, **config: object) -> Iterator[str]:
    process, url = start_server(binary, place, config)
    try:
        yield url
    finally:
        process.kill()
        process.wait()


def refused(tmp_path: Path, url: str) -> str:
    done = Program(environment(HOME=str(tmp_path)), tmp_path)("ls", "--url", url)
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    return line


def test_server_older_than_2_12_is_refused_by_name(tmp_path: Path) -> None:
    with server(OLD_SERVER, tmp_path / "old", jetstream={"store_dir": str(tmp_path / "js")}) as url:
        line = refused(tmp_path, url)
    assert "SERVER_TOO_OLD: nats-server 2.11.11 is too old" in line
    assert "Upgrade nats-server" in line


def test_server_without_jetstream_is_refused_by_name(tmp_path: Path) -> None:
    with server(wheel_server(), tmp_path / "bare") as url:
        line = refused(tmp_path, url)
    assert "JETSTREAM_MISSING: the server runs without JetStream" in line


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def restart(place: Path, port: int) -> "subprocess.Popen[bytes]":
    for stale in place.glob("*.ports"):
        stale.unlink()
    config = {
        "listen": f"127.0.0.1:{port}",
        "jetstream": {"store_dir": str(place / "js"), "sync_interval": "always"},
    }
    process, _ = start_server(wheel_server(), place, config)
    return process


@pytest.mark.slow
@pytest.mark.anyio
async def test_job_goes_on_when_the_server_is_killed_and_comes_back(tmp_path: Path) -> None:
    port, place, mark = free_port(), tmp_path / "server", tmp_path / "mark"
    settings = ConnectionSettings(url=f"nats://127.0.0.1:{port}")
    topology, catalog = Topology(Grammar()), load_catalog([REHEARSE])
    process = restart(place, port)
    async with (
        connect(settings) as first,
        connect(settings) as second,
        h2kbus.connect(settings=settings) as bus,
        anyio.create_task_group() as group,
    ):
        await group.start(Scheduler(first, topology, catalog, "scheduler").serve)
        worker = Worker(second, topology, catalog, worker_profile("worker", tokens=("op-rehearse",)))
        await group.start(functools.partial(worker.serve, grace=0))
        job_id = await bus.submit(rehearsal(seconds=5, mark=str(mark)))
        async for event in bus.watch(job_id):
            if event.state is State.PROGRESSING:
                break
        process.kill()
        process.wait()
        await anyio.sleep(1)
        process = restart(place, port)
        with anyio.fail_after(40):
            record = await bus.result(job_id)
        group.cancel_scope.cancel()
    process.kill()
    process.wait()
    assert record.state is State.COMPLETED
    assert mark.read_text().split() == ["1"]
    assert record.updated_at - record.created_at < dt.timedelta(seconds=60)
