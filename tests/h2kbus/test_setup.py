"""A bus on a cluster gets more copies of its streams while jobs go on, and outlives a node of it."""

import functools
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import h2kbus
from h2kbus.connection import connect
from h2kbus.errors import ContractConflict, H2KBusError
from h2kbus.plugins import load_catalog
from h2kbus.provision import provision
from h2kbus.replicas import read_copies, wait_for_copies
from h2kbus.settings import ConnectionSettings
from scheduler.service import Scheduler
from subjects.grammar import Grammar
from subjects.operations import plugin_token
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import REHEARSE, rehearsal, worker_profile
from tests.servers import start_server, wheel_server
from workers.service import Worker

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

NODES = 3


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    """Three real servers with JetStream."""

    def __init__(self, place: Path) -> None:
        routes = free_ports(NODES)
        self.urls: list[str] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for number, port in enumerate(routes):
            name = f"n{number}"
            config: dict[str, Any] = {
                "server_name": name,
                "jetstream": {"store_dir": str(place / name / "js")},
                "cluster": {
                    "name": "test",
                    "listen": f"127.0.0.1:{port}",
                    "routes": [f"nats://127.0.0.1:{each}" for each in routes],
                },
            }
            self.processes[name], url = start_server(wheel_server(), place / name, config)
            self.urls.append(url)

    @property
    def settings(self) -> ConnectionSettings:
        return ConnectionSettings(url=",".join(self.urls), root=f"t{secrets.token_hex(5)}.v1")

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    servers = Cluster(tmp_path)
    yield servers
    servers.stop()


async def provisioned(settings: ConnectionSettings, replicas: int) -> None:
    """A new cluster refuses streams until its nodes have found each other."""
    topology = Topology(Grammar(settings.root), replicas)
    async with connect(settings) as connection:
        with anyio.fail_after(30):
            while True:
                try:
                    await provision(connection, topology)
                except H2KBusError:
                    await anyio.sleep(0.2)
                else:
                    return


async def test_streams_get_their_copies_while_jobs_go_on_and_outlive_a_node(cluster: Cluster) -> None:
    settings = cluster.settings
    await provisioned(settings, 1)
    topology = Topology(Grammar(settings.root))
    catalog = load_catalog([REHEARSE])
    async with (
        h2kbus.connect(settings=settings) as bus,
        connect(settings) as first,
        connect(settings) as second,
        anyio.create_task_group() as group,
    ):
        await group.start(Scheduler(first, topology, catalog, "scheduler-1").serve)
        profile = worker_profile("w1", tokens=(plugin_token("rehearse"),), slots=4)
        worker = Worker(second, topology, catalog, profile)
        await group.start(functools.partial(worker.serve, grace=0.0))
        specs = [rehearsal(job_id=f"before-{number}", seconds=0.1) for number in range(40)]
        ids = [each async for each in bus.submit_many(specs)]
        await provision(first, Topology(topology.grammar, NODES))
        copies = await wait_for_copies(first, topology, 60)
        assert {each.current for each in copies} == {NODES}
        assert {each.consumer for each in copies} > {None, "scheduler"}
        leader = (await first.api(f"STREAM.INFO.{topology.jobs_stream}"))["cluster"]["leader"]
        cluster.processes[leader].kill()
        for number in range(10):
            ids.append(f"after-{number}")
            await handed_in(bus, ids[-1])
        with anyio.fail_after(120):
            records = [record async for record in bus.results(ids)]
        assert {record.state for record in records} == {State.COMPLETED}
        group.cancel_scope.cancel()


async def handed_in(bus: h2kbus.Bus, job_id: str) -> None:
    """While a new leader is chosen the server answers nobody; the same job again changes nothing."""
    with anyio.fail_after(60):
        while True:
            try:
                await bus.submit(rehearsal(job_id=job_id))
            except H2KBusError:
                await anyio.sleep(0.2)
            else:
                return


async def test_scheduler_that_says_nothing_of_copies_leaves_them_as_they_are(cluster: Cluster) -> None:
    settings = cluster.settings
    await provisioned(settings, NODES)
    topology = Topology(Grammar(settings.root))
    async with connect(settings) as connection:
        assert await provision(connection, topology) == []
        assert {each.wanted for each in await read_copies(connection, topology)} == {NODES}


async def test_copies_are_never_taken_away(cluster: Cluster) -> None:
    settings = cluster.settings
    await provisioned(settings, NODES)
    async with connect(settings) as connection:
        with pytest.raises(ContractConflict, match="num_replicas"):
            await provision(connection, Topology(Grammar(settings.root), 2))
