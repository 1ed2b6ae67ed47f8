"""The processes that are measured: a server, a scheduler and a worker, as a user starts them."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import anyio
import msgspec
import psutil

from h2kbus.client import Bus, connect
from h2kbus.embedded import embedded_server
from h2kbus.errors import BusError, EmbeddedServerError
from h2kbus.settings import ConnectionSettings
from subjects.spec import ArtifactPolicy, Audit, ImageSpec, JobSpec

NOOP: Final = "h2kbus.cli.bench.noop:NOOP"
START_SECONDS: Final = 30.0
SLOTS: Final = 10


class Fleet(msgspec.Struct, frozen=True):
    """A running bus, its client, and the worker's process for looking at its memory."""

    bus: Bus
    settings: ConnectionSettings
    worker: psutil.Process
    place: Path


@contextlib.asynccontextmanager
async def running_fleet(*, sync_always: bool) -> AsyncIterator[Fleet]:
    """One scheduler and one worker process on an embedded server, in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="h2kbus-bench-") as directory:
        place = Path(directory)
        async with embedded_server(place / "bus", 0, sync_always=sync_always) as server:
            settings = server.settings(f"bench-{secrets.token_hex(3)}.v1")
            with (
                _process("scheduler", settings, place),
                _process("worker", settings, place, "--slots", str(SLOTS)) as worker,
            ):
                async with connect(settings=settings) as bus:
                    await _ready(bus, place)
                    yield Fleet(bus, settings, psutil.Process(worker.pid), place)


@contextlib.contextmanager
def _process(
    role: str, settings: ConnectionSettings, place: Path, *more: str
) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [sys.executable, "-m", "h2kbus", role, "--operations", NOOP, *more]
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


def noop_job() -> JobSpec:
    """A job of ordinary size that does nothing."""
    return JobSpec(
        operation="noop",
        image=ImageSpec(path="/images/disk.vmdk", format="vmdk", checksum="0" * 64),
        artifacts=ArtifactPolicy(output_path="/images/out", log_upload=False),
        audit=Audit(requested_by="bench", ticket="BENCH-1", tags={"team": "bench"}),
    )
