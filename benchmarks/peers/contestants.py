"""Who is measured: h2kbus, the bare loop, and each peer with its worker's command line.

A turn has everything fresh: the server, the worker and the client. It warms up with a tenth of the jobs.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import msgspec
import psutil

from benchmarks.peers.servers import STOP_SECONDS, Durability, redis_server
from h2kbus.cli.bench.bare import bare_rate
from h2kbus.cli.bench.fleet import SLOTS, running_fleet
from h2kbus.cli.bench.pipeline import Cost, pipeline_cost, pipeline_seconds
from h2kbus.embedded import embedded_server
from h2kbus.errors import SettingsError

REPOSITORY: Final = Path(__file__).parents[2]
ENVIRONMENT: Final = REPOSITORY / ".venv-peers"
CLIENT_SECONDS: Final = 600.0


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """How one peer is run. `worker` follows the environment's directory of programs."""

    module: str
    worker: tuple[str, ...]
    keeps: str
    path: str = ""
    environment: Mapping[str, str] = {}


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What every contestant is told."""

    jobs: int
    durability: Durability
    peers: Path = ENVIRONMENT


Contestant = Callable[[Turn], Awaitable[Cost]]

JOBS: Final = "benchmarks.peers.jobs"

ON_REDIS: Final[Mapping[str, Peer]] = {
    "arq": Peer(
        module=f"{JOBS}.with_arq",
        worker=("python", "-m", f"{JOBS}.with_arq", "worker"),
        keeps="results",
        # It asks for an older client of Redis than the others do, and so lies in a directory of its own.
        path="share/arq",
    ),
    "dramatiq": Peer(
        module=f"{JOBS}.with_dramatiq",
        worker=("dramatiq", "--processes", "1", "--threads", "8", f"{JOBS}.with_dramatiq"),
        keeps="results",
        environment={"dramatiq_queue_prefetch": "1000"},
    ),
    "celery": Peer(
        module=f"{JOBS}.with_celery",
        worker=("celery", "--app", f"{JOBS}.with_celery", "worker", "--concurrency", "2"),
        keeps="results",
    ),
}
ON_NATS: Final[Mapping[str, Peer]] = {
    "taskiq-nats": Peer(
        module=f"{JOBS}.with_taskiq",
        worker=("taskiq", "worker", "--workers", "1", "--log-level", "WARNING", f"{JOBS}.with_taskiq:broker"),
        keeps="nothing",
    ),
    "faststream": Peer(
        module=f"{JOBS}.with_faststream",
        worker=("faststream", "run", f"{JOBS}.with_faststream:app"),
        keeps="nothing",
    ),
}
PEERS: Final[Mapping[str, Peer]] = {**ON_REDIS, **ON_NATS}


async def _h2kbus(turn: Turn) -> Cost:
    async with running_fleet(sync_always=turn.durability.sync_always) as fleet:
        await pipeline_seconds(fleet, max(turn.jobs // 10, 1))
        return await pipeline_cost(fleet, turn.jobs)


async def _bare(turn: Turn, *, every_write: bool = False) -> Cost:
    async with running_fleet(sync_always=turn.durability.sync_always) as fleet:
        loop = partial(bare_rate, fleet.bus, fleet.settings, every_write=every_write)
        await loop(max(turn.jobs // 10, 1), SLOTS, 0)
        pids = [os.getpid(), fleet.processes["server"].pid]
        before = _cpu_seconds(pids)
        rate = await loop(turn.jobs, SLOTS, 1)
        return Cost(turn.jobs, turn.jobs / rate, _cpu_seconds(pids) - before)


def _on_redis(peer: Peer) -> Contestant:
    def measure(turn: Turn) -> Cost:
        with redis_server(turn.durability, turn.peers / "bin") as server:
            return _play(peer, turn, server.url, server.pid)

    return lambda turn: anyio.to_thread.run_sync(measure, turn)


def _on_nats(peer: Peer) -> Contestant:
    async def measure(turn: Turn) -> Cost:
        with tempfile.TemporaryDirectory(prefix="h2kbus-peer-") as directory:
            place = Path(directory) / "nats"
            async with embedded_server(place, 0, sync_always=turn.durability.sync_always) as server:
                url = server.url.replace("://", f"://{server.token}@")
                return await anyio.to_thread.run_sync(_play, peer, turn, url, server.pid)

    return measure


CONTESTANTS: Final[Mapping[str, Contestant]] = {
    "h2kbus": _h2kbus,
    "bare loop": _bare,
    "bare loop of every write": partial(_bare, every_write=True),
    **{name: _on_redis(peer) for name, peer in ON_REDIS.items()},
    **{name: _on_nats(peer) for name, peer in ON_NATS.items()},
}
KEEPS: Final[Mapping[str, str]] = {
    "h2kbus": "results, states, events",
    "bare loop": "states",
    "bare loop of every write": "states, events",
    **{name: peer.keeps for name, peer in PEERS.items()},
}


def require_environment(place: Path) -> None:
    """Raises SettingsError unless the peers are installed there."""
    if not (place / "bin" / "celery").exists():
        raise SettingsError(f"there are no peers in {place}: run `.ci/setup peers`")


def _play(peer: Peer, turn: Turn, url: str, server: int) -> Cost:
    programs = turn.peers / "bin"
    paths = [str(turn.peers / peer.path)] if peer.path else []
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
        **peer.environment,
        "PEER_URL": url,
        "PYTHONPATH": os.pathsep.join([*paths, str(REPOSITORY)]),
    }
    with tempfile.TemporaryDirectory(prefix="h2kbus-peer-") as directory:
        log = Path(directory) / "worker.log"
        worker = [str(programs / peer.worker[0]), *peer.worker[1:]]
        client = [str(programs / "python"), "-m", peer.module, str(turn.jobs)]
        try:
            with _worker(worker, environment, log) as pid:
                seconds, cpu = _follow(client, environment, log.with_name("client.log"), [server, pid])
                return Cost(turn.jobs, seconds, cpu)
        except ValueError:
            words = [each.read_text(errors="replace")[-300:] for each in sorted(log.parent.glob("*.log"))]
            raise SettingsError(f"{peer.module} failed: {' | '.join(words)}") from None


def _follow(
    argv: list[str], environment: Mapping[str, str], log: Path, pids: list[int]
) -> tuple[float, float]:
    """Run the client, and read the others' processor time when it begins to measure and when it stops.

    Gives the measured seconds and the processor time of all.

    Raises ValueError when it does not get to its end.
    """
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            argv, env=dict(environment), stdout=subprocess.PIPE, stderr=errors, cwd=log.parent
        ) as client,
    ):
        deadline = threading.Timer(CLIENT_SECONDS, client.kill)
        deadline.start()
        try:
            said = iter(client.stdout or ())
            json.loads(next(said, b""))
            before = _cpu_seconds(pids)
            told: dict[str, float] = json.loads(next(said, b""))
            spent = _cpu_seconds(pids) - before
            if client.wait() != 0:
                raise ValueError("it failed")
        finally:
            deadline.cancel()
            client.kill()
    return told["seconds"], told["cpu_seconds"] + spent


def _cpu_seconds(pids: Iterable[int]) -> float:
    """What these processes and their children have used so far."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        # This process is the parent of all others here.
        children = process.children(recursive=True) if pid != os.getpid() else []
        times = [each.cpu_times() for each in (process, *children)]
        total += sum(each.user + each.system for each in times)
    return total


@contextlib.contextmanager
def _worker(argv: list[str], environment: Mapping[str, str], log: Path) -> Iterator[int]:
    """The peer's worker in a session of its own, which ends with the context with all its children."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, env=dict(environment), stdout=output, stderr=output, cwd=log.parent, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        for each in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, each)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
