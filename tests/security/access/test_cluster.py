"""The generated configuration on three nodes: routes want a password, and users meet across nodes."""

import contextlib
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

import h2kbus
from h2kbus.authority import CLUSTER_PORT
from h2kbus.connection import connect
from h2kbus.provision import provision
from h2kbus.replicas import wait_for_copies
from h2kbus.settings import ConnectionSettings
from subjects.grammar import Grammar
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal
from tests.security.access.conftest import USERS, Guarded, free_port
from tests.servers import wheel_server

pytestmark = pytest.mark.slow

NODE = """
server_name: node-{number}
listen: "{host}:{port}"
jetstream {{ store_dir: "{store}" }}
include access.conf
cluster {{
  name: h2kbus
  listen: "{host}:{cluster_port}"
  include cluster.conf
}}
"""


class Cluster(Guarded):
    """Three nodes, each at an address of its own on the loopback."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        network = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250) + 1}"
        self.hosts = [f"{network}.{number}" for number in (1, 2, 3)]
        self.port = free_port()
        self.authority.init(hosts=self.hosts, port=self.port, users=USERS)
        self.nodes = [self._start(number, host) for number, host in enumerate(self.hosts)]

    def _start(self, number: int, host: str) -> "subprocess.Popen[bytes]":
        file = self.authority.server / f"node-{number}.conf"
        store = self.authority.directory / f"js-{number}"
        given = {"number": number, "host": host, "port": self.port, "store": store}
        file.write_text(NODE.format(**given, cluster_port=CLUSTER_PORT))
        return subprocess.Popen(
            [wheel_server(), "-c", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def at(self, number: int, name: str) -> ConnectionSettings:
        return self.settings(name, url=f"tls://{self.hosts[number]}:{self.port}", connect_timeout_seconds=20)

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()
            node.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "auth")
    yield made
    made.stop()


async def set_up(cluster: Cluster) -> None:
    topology = Topology(Grammar(), replicas=3)
    with anyio.fail_after(60):
        while True:
            with contextlib.suppress(h2kbus.errors.H2KBusError):
                async with connect(cluster.at(0, "root")) as admin:
                    await provision(admin, topology)
                    await wait_for_copies(admin, topology, 30)
                    return
            await anyio.sleep(0.5)


async def test_users_on_different_nodes_do_a_job(cluster: Cluster) -> None:
    await set_up(cluster)
    async with contextlib.AsyncExitStack() as stack, anyio.create_task_group() as group:
        schedulers, workers = (
            Fleet(cluster.at(number, name), group, stack) for number, name in ((0, "s1"), (1, "w1"))
        )
        await schedulers.scheduler(replicas=3)
        await workers.worker("w1")
        async with h2kbus.connect(settings=cluster.at(2, "alice")) as alice:
            ids = [await alice.submit(rehearsal(seconds=0.2)) for _ in range(5)]
            states = [event.state async for event in alice.watch(ids[0])]
            assert State.RUNNING in states
            for job_id in ids:
                record = await alice.result(job_id)
                assert (record.state, record.submitted_by) == (State.COMPLETED, "alice")
        group.cancel_scope.cancel()


def test_no_node_joins_with_a_users_certificate(cluster: Cluster, tmp_path: Path) -> None:
    """A user's certificate is signed by the same authority: the routes want a password too."""
    anyio.run(set_up, cluster)
    settings, intruder = cluster.settings("alice"), tmp_path / "intruder"
    intruder.mkdir()
    tls = {"cert_file": settings.tls_cert, "key_file": settings.tls_key, "ca_file": settings.tls_ca}
    config = {
        "server_name": "intruder",
        "listen": "127.0.0.1:-1",
        "log_file": str(intruder / "log"),
        "cluster": {
            "name": "h2kbus",
            "listen": "127.0.0.1:-1",
            "tls": tls,
            "routes": [f"nats://route:guess@{cluster.hosts[0]}:{CLUSTER_PORT}"],
        },
    }
    (intruder / "conf").write_bytes(msgspec.json.encode(config))
    node = subprocess.Popen([wheel_server(), "-c", intruder / "conf"])
    try:
        until = time.monotonic() + 10
        while "uthorization" not in (log := read(intruder / "log")):
            assert time.monotonic() < until, log
            time.sleep(0.1)
    finally:
        node.kill()
        node.wait()


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def test_nothing_is_said_in_plain_text(cluster: Cluster) -> None:
    """What the server tells before TLS is what it wants of its clients."""
    anyio.run(set_up, cluster)
    with socket.create_connection((cluster.hosts[0], cluster.port), timeout=5) as plain:
        info = msgspec.json.decode(plain.recv(4096).partition(b"INFO ")[2].splitlines()[0])
        assert (info["tls_required"], info["tls_verify"]) == (True, True)
        plain.sendall(b'CONNECT {"verbose":true}\r\nPING\r\n')
        assert b"PONG" not in plain.recv(4096)
