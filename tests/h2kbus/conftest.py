"""Servers of a test's own, and a bus whose streams exist though no scheduler runs."""

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from h2kbus.connection import Connection
from h2kbus.provision import provision
from h2kbus.settings import ConnectionSettings
from subjects.topology import Topology
from tests.servers import start_server, wheel_server


class OwnServer:
    """A nats-server that one test configures, kills and starts again, always at the same address."""

    def __init__(self, place: Path, config: dict[str, Any]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._place = place
        self._config = {"listen": f"127.0.0.1:{self.port}", **config}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for stale in self._place.glob("*.ports"):
            stale.unlink()
        self._process, _ = start_server(wheel_server(), self._place, self._config)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def settings(self, **more: Any) -> ConnectionSettings:
        return ConnectionSettings(url=f"nats://127.0.0.1:{self.port}", **more)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., OwnServer]]:
    """Call it with the server's configuration; `jetstream` is on unless it says False."""
    with contextlib.ExitStack() as stack:

        def start(*, jetstream: bool = True, **config: Any) -> OwnServer:
            store = {"jetstream": {"store_dir": str(tmp_path / "jetstream")}} if jetstream else {}
            server = OwnServer(tmp_path / "server", {**store, **config})
            stack.callback(server.kill)
            server.start()
            return server

        yield start


@pytest.fixture
async def provisioned(connection: Connection, topology: Topology) -> Connection:
    """The test's connection to a bus that has its streams."""
    await provision(connection, topology)
    return connection
