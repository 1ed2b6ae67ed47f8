"""A real server with the configuration that `h2kbus auth` makes: TLS, and users of each role."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup

import h2kbus
from h2kbus.authority import Authority, Wanted
from h2kbus.client import Bus
from h2kbus.connection import Connection, connect
from h2kbus.provision import provision
from h2kbus.settings import ConnectionSettings
from subjects.grammar import Grammar
from subjects.permissions import Role
from subjects.topology import Topology
from tests.conftest import Fleet, Program, environment
from tests.servers import wheel_server

TOPOLOGY = Topology(Grammar())
USERS = (
    Wanted(role=Role.ADMIN, name="root"),
    Wanted(role=Role.SUBMITTER, name="alice"),
    Wanted(role=Role.SUBMITTER, name="bob"),
    Wanted(role=Role.OBSERVER, name="olga"),
    Wanted(role=Role.OPERATOR, name="oscar"),
    Wanted(role=Role.WORKER, name="w1"),
    Wanted(role=Role.WORKER, name="w2"),
    Wanted(role=Role.WORKER, name="many", any_id=True),
    Wanted(role=Role.WORKER, name="stranger", root="other.v1"),
    Wanted(role=Role.SCHEDULER, name="s1"),
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Guarded:
    """A directory of keys, and a server that runs with what lies there."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.authority.server / "nats.conf"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [wheel_server(), "-c", self.config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 20
        while time.monotonic() < until and self._process.poll() is None:
            port = self.authority.ledger().port
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.05)
        pytest.fail("the server did not start with the generated configuration")

    def reload(self) -> None:
        """Twice: a server connects a new account with those that it imports from at the second time only."""
        assert self._process is not None
        for _ in range(2):
            self._process.send_signal(signal.SIGHUP)
            time.sleep(1)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def settings(self, name: str, **changes: Any) -> ConnectionSettings:
        """How the user connects, as the file says that was made for it."""
        file = self.authority.user_directory(name) / f"{name}.json"
        return msgspec.structs.replace(ConnectionSettings.resolve({"context": str(file)}, {}), **changes)

    def connection(self, name: str) -> contextlib.AbstractAsyncContextManager[Connection]:
        return connect(self.settings(name))

    def bus(self, name: str) -> contextlib.AbstractAsyncContextManager[Bus]:
        return h2kbus.connect(settings=self.settings(name))

    def program(self, name: str, place: Path) -> Program:
        file = self.authority.user_directory(name) / f"{name}.json"
        return Program(environment(HOME=str(place), USER="somebody", H2KBUS_CONTEXT=str(file)), place)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server for the tests of one module; its admin has made the streams."""
    made = Guarded(tmp_path_factory.mktemp("fleet") / "auth")
    made.authority.init(port=free_port(), users=USERS)
    made.start()

    async def set_up() -> None:
        async with made.connection("root") as admin:
            await provision(admin, TOPOLOGY)

    anyio.run(set_up)
    yield made
    made.stop()


@pytest.fixture
async def group() -> AsyncIterator[TaskGroup]:
    async with anyio.create_task_group() as opened:
        yield opened
        opened.cancel_scope.cancel()


@pytest.fixture
async def working(guarded: Guarded) -> AsyncIterator[Guarded]:
    """The server with a scheduler and a worker, each under its own user."""
    async with contextlib.AsyncExitStack() as stack, anyio.create_task_group() as opened:
        await Fleet(guarded.settings("s1"), opened, stack).scheduler()
        await Fleet(guarded.settings("w1"), opened, stack).worker("w1")
        yield guarded
        opened.cancel_scope.cancel()
