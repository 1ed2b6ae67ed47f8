"""The system under test as real processes: a server, schedulers and workers, each restarted when it dies."""

import abc
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import anyio
import psutil
from anyio.abc import TaskGroup

from tests.chaos.proxy import Proxy
from tests.conftest import REPOSITORY, environment
from tests.servers import wheel_server

OPERATION: Final = "tests.chaos.operation:CHAOS"
RESTART_SECONDS: Final = 0.3
START_SECONDS: Final = 15.0
FAKETIME: Final = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class Process(abc.ABC):
    """One supervised process: what runs under `argv` is started again whenever it ends."""

    def __init__(self, name: str, place: Path) -> None:
        self.name = name
        self.restarts = 0
        self._log = (place / f"{name}.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = True

    @abc.abstractmethod
    def argv(self) -> list[str]:
        """What to run."""

    def environment(self) -> dict[str, str]:
        return unmeasured()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *self.argv()],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            cwd=REPOSITORY,
        )

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def supervise(self) -> None:
        while self._wanted:
            if self._process is None or self._process.poll() is not None:
                await anyio.sleep(RESTART_SECONDS)
                if self._wanted:
                    self.restarts += 1
                    self.start()
            await anyio.sleep(0.05)

    async def stop(self) -> None:
        """End it for good: gently, and after a while not."""
        self._wanted = False
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with anyio.move_on_after(10):
            while self._process is not None and self._process.poll() is None:
                await anyio.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        self._wanted = False
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        self._log.close()


class Server(Process):
    """nats-server with every write synced, always on the same port."""

    def __init__(self, place: Path) -> None:
        super().__init__("server", place)
        self.port = free_port()
        self._config = place / "server.conf"
        jetstream = {"store_dir": str(place / "js"), "sync_interval": "always"}
        self._config.write_text(json.dumps({"listen": f"127.0.0.1:{self.port}", "jetstream": jetstream}))

    def argv(self) -> list[str]:
        return [str(wheel_server()), "-c", str(self._config)]

    async def is_back(self) -> None:
        """Wait until it takes connections."""
        with anyio.fail_after(START_SECONDS):
            while True:
                with contextlib.suppress(OSError):
                    async with await anyio.connect_tcp("127.0.0.1", self.port):
                        return
                await anyio.sleep(0.02)


class Node(Process):
    """A scheduler or a worker, behind a proxy of its own."""

    def __init__(
        self, name: str, place: Path, proxy: Proxy, root: str, variant: str, command: list[str]
    ) -> None:
        super().__init__(name, place)
        self.proxy = proxy
        self.crash_point = "-"
        self.clock = ""
        self._root = root
        self._variant = variant
        self._command = command

    def argv(self) -> list[str]:
        """A crash point and a wrong clock last for one life."""
        point, self.crash_point = self.crash_point, "-"
        return [sys.executable, "-m", "tests.chaos.node", self._variant, point, *self._command]

    def environment(self) -> dict[str, str]:
        clock, self.clock = self.clock, ""
        faked = (
            {"LD_PRELOAD": str(FAKETIME), "FAKETIME": clock, "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
            if clock
            else {}
        )
        return unmeasured(
            H2KBUS_URL=f"nats://127.0.0.1:{self.proxy.port}", H2KBUS_ROOT=self._root, USER="chaos", **faked
        )

    def tools(self) -> list[psutil.Process]:
        """The tools that it runs at the moment."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.pid).children(recursive=True)
        return []


class Cluster:
    """Everything that a campaign runs, and may hurt."""

    def __init__(self, server: Server, schedulers: list[Node], workers: list[Node]) -> None:
        self.server = server
        self.schedulers = schedulers
        self.workers = workers

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.server.port}"

    @property
    def nodes(self) -> list[Node]:
        return [*self.schedulers, *self.workers]


@contextlib.asynccontextmanager
async def running_cluster(
    place: Path, root: str, *, lease: float, workers: int, variant: str
) -> AsyncIterator[Cluster]:
    """Start everything; on the way out every process has ended, whatever happened."""
    server = Server(place)
    async with contextlib.AsyncExitStack() as stack, anyio.create_task_group() as group:
        schedule = ["scheduler", "--lease", f"{lease:g}", "--operations", OPERATION]
        work = ["worker", "--slots", "4", "--grace", "1", "--operations", OPERATION]

        async def node(name: str, command: list[str]) -> Node:
            proxy = await stack.enter_async_context(Proxy(server.port))
            return Node(name, place, proxy, root, variant, command)

        schedulers = [await node(f"scheduler-{number}", schedule) for number in range(2)]
        fleet = [await node(f"worker-{number}", work) for number in range(workers)]
        cluster = Cluster(server, schedulers, fleet)
        try:
            await _start(group, cluster)
            yield cluster
        finally:
            group.cancel_scope.cancel()
            for each in (*cluster.nodes, server):
                each.kill()


async def _start(group: TaskGroup, cluster: Cluster) -> None:
    for process in (cluster.server, *cluster.nodes):
        process.start()
        group.start_soon(process.supervise)
        if process is cluster.server:
            await cluster.server.is_back()


def unmeasured(**more: str) -> dict[str, str]:
    """The environment of a process whose coverage is not measured: it is killed, and has to be back soon."""
    return {name: value for name, value in environment(**more).items() if not name.startswith("COVERAGE")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def left_over(place: Path) -> list[str]:
    """Processes that still have to do with the campaign's directory."""
    ours = {os.getpid(), *(each.pid for each in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            facts: dict[str, Any] = process.as_dict(["pid", "cmdline", "cwd"])
            if process.pid not in ours and str(place) in f"{facts['cwd']} {facts['cmdline']}":
                found.append(f"{facts['pid']} {' '.join(facts['cmdline'] or [])}")
    return found
