"""The processes that are measured: one server or three, a scheduler and a worker, as a user starts them."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import psutil

from h2kbus.cli.bench.cluster import running_cluster
from h2kbus.client import Bus, connect
from h2kbus.embedded import embedded_server
from h2kbus.errors import BusError, EmbeddedServerError
from h2kbus.settings import ConnectionSettings
from subjects.spec import ArtifactPolicy, Audit, ImageSpec, JobSpec

NOOP: Final = "h2kbus.cli.bench.noop:NOOP"
PACED: Final = ("h2kbus.cli.bench.paced:SPEAK", "h2kbus.cli.bench.paced:HOLD")
STAY: Final = "h2kbus.cli.bench.paced:STAY"
START_SECONDS: Final = 30.0
SLOTS: Final = 10
_MIB: Final = 1 << 20


class Fleet(msgspec.Struct, frozen=True):
    """A running bus, its client, and the processes behind it by what they are."""

    bus: Bus
    settings: ConnectionSettings
    processes: dict[str, psutil.Process]
    place: Path

    @property
    def worker(self) -> psutil.Process:
        return self.processes["worker"]

    def cpu_seconds(self) -> float:
        """Processor time that all of them and this process, the client, have used so far."""
        times = [each.cpu_times() for each in (*self.processes.values(), psutil.Process())]
        return float(sum(each.user + each.system for each in times))

    def memory_mb(self) -> dict[str, float]:
        """Resident memory of each process, in MiB, as the kernel counts it."""
        return {name: round(each.memory_info().rss / _MIB, 1) for name, each in self.processes.items()}


@contextlib.asynccontextmanager
async def running_fleet(
    *, sync_always: bool, replicas: int = 1, operations: Sequence[str] = (NOOP,)
) -> AsyncIterator[Fleet]:
    """One scheduler and one worker process on an embedded server, in a temporary directory.

    With more `replicas` they are on a cluster of as many nodes, which keeps as many copies of everything.
    """
    with tempfile.TemporaryDirectory(prefix="h2kbus-bench-") as directory:
        place = Path(directory)
        async with _servers(place, replicas, sync_always=sync_always) as (settings, servers):
            loaded = [word for each in operations for word in ("--operations", each)]
            copies = ("--replicas", str(replicas))
            with (
                _process("scheduler", settings, place, *loaded, *copies) as scheduler,
                _process("worker", settings, place, *loaded, "--slots", str(SLOTS)) as worker,
            ):
                async with connect(settings=settings) as bus:
                    await _ready(bus, place)
                    processes = {**servers, "scheduler": scheduler.pid, "worker": worker.pid}
                    found = {name: psutil.Process(pid) for name, pid in processes.items()}
                    yield Fleet(bus, settings, found, place)


@contextlib.asynccontextmanager
async def _servers(
    place: Path, replicas: int, *, sync_always: bool
) -> AsyncIterator[tuple[ConnectionSettings, dict[str, int]]]:
    """How to connect under a root of its own, and the servers' processes."""
    root = f"bench-{secrets.token_hex(3)}.v1"
    if replicas == 1:
        async with embedded_server(place / "bus", 0, sync_always=sync_always) as server:
            yield server.settings(root), {"server": server.pid}
        return
    async with running_cluster(place / "bus", root, replicas, sync_always=sync_always) as cluster:
        yield cluster.settings, {f"server_{number}": pid for number, pid in enumerate(cluster.pids, 1)}


@contextlib.contextmanager
def _process(
    role: str, settings: ConnectionSettings, place: Path, *more: str
) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [sys.executable, "-m", "h2kbus", role, *more]
    reached = {"URL": settings.url, "TOKEN": settings.token or "", "ROOT": settings.root}
    environment = {**os.environ, **{f"H2KBUS_{name}": value for name, value in reached.items()}}
    with (place / f"{role}.log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, cwd=place)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _ready(bus: Bus, place: Path) -> None:
    """Wait until both have been seen at work: one job goes all the way."""
    with anyio.move_on_after(START_SECONDS):
        while True:
            with contextlib.suppress(BusError):
                if await bus.workers():
                    break
            await anyio.sleep(0.05)
        await bus.result(await bus.submit(noop_job()), check=True)
        return
    logs = " | ".join((place / f"{role}.log").read_text()[-500:] for role in ("scheduler", "worker"))
    raise EmbeddedServerError(f"scheduler and worker did not start in {START_SECONDS:g} s: {logs}")


def noop_job(operation: str = "noop", output: str = "/images/out", **parameters: Any) -> JobSpec:
    """A job of ordinary size that does nothing, or another one of the bench's own operations."""
    return JobSpec(
        operation=operation,
        image=ImageSpec(path="/images/disk.vmdk", format="vmdk", checksum="0" * 64),
        artifacts=ArtifactPolicy(output_path=output, log_upload=False),
        audit=Audit(requested_by="bench", ticket="BENCH-1", tags={"team": "bench"}),
        parameters=parameters,
    )
