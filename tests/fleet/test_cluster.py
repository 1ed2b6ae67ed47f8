"""Six hosts, two schedulers and three NATS nodes: the fleet outlives the loss of any part."""

import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import msgspec
import pytest

import h2kbus
from h2kbus.cli.output import print_line
from h2kbus.client import Bus
from h2kbus.errors import H2KBusError
from tests.chaos.checker import check
from tests.chaos.driver import Driver
from tests.chaos.evidence import files, gather, settled
from tests.chaos.history import History
from tests.fleet.compose import NODES, Compose
from tests.fleet.images import docker

pytestmark = pytest.mark.anyio

HOSTS: Final = 6
JOBS: Final = 500
LEASE: Final = 6.0
SECONDS: Final = 150.0
"""How long the submissions take: as long as all the faults do."""


@pytest.fixture
def compose(images: str, place: Path) -> Iterator[Compose]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    cluster = Compose(place, workers=HOSTS, lease=LEASE, port=port)
    try:
        cluster.up()
        yield cluster
    finally:
        (place / "compose.log").write_text(cluster.logs())
        cluster.down()


# The NATS client leaves a stream unclosed when a node goes away in the middle of its first words.
@pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <function StreamWriter\.__del__:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.timeout(900)
async def test_five_hundred_jobs_on_six_hosts_survive_the_loss_of_any_part(compose: Compose) -> None:
    place = compose.place
    settings = msgspec.structs.replace(compose.settings("setup"), connect_timeout_seconds=60)
    async with h2kbus.connect(settings=settings, submitter="chaos") as bus:
        await _ready(bus)
        with History(place / "history.jsonl") as history:
            driver = Driver(bus, place, history, random.Random(7))
            async with anyio.create_task_group() as listening:
                listening.start_soon(driver.listen)
                async with anyio.create_task_group() as group:
                    group.start_soon(driver.submit_all, JOBS, SECONDS)
                    group.start_soon(_faults, compose, bus)
                with anyio.move_on_after(180):
                    while driver.open:
                        await anyio.sleep(0.2)
                listening.cancel_scope.cancel()
        await settled(bus, 60)
        evidence = await gather(bus, driver.accepted, place)
    violations = check(msgspec.structs.replace(evidence, files=files(place)))
    starts = sum(line.event == "start" for line in evidence.ledger)
    print_line(f"{len(evidence.records)} jobs, {starts} executions, {len(violations)} violations")
    assert len(evidence.records) == JOBS
    assert violations == []
    assert len({record.worker_id for record in evidence.records.values()}) > HOSTS


async def _ready(bus: Bus) -> None:
    with anyio.fail_after(120):
        while True:
            try:
                if len(await bus.workers()) == HOSTS:
                    return
            except H2KBusError:
                """The streams are made once the nodes have found each other."""
            await anyio.sleep(0.5)


async def _faults(compose: Compose, bus: Bus) -> None:
    """One after the other: each has its time to be recovered from while jobs go on."""
    await anyio.sleep(10)
    await _kill_the_leader(compose, bus)
    await anyio.sleep(10)
    await _cut_off_a_host(compose)
    await anyio.sleep(5)
    await _roll(compose)


async def _kill_the_leader(compose: Compose, bus: Bus) -> None:
    """Kill the node that leads the job stream, unless it is the one that the client is connected to."""
    info = await bus.connection.api(f"STREAM.INFO.{bus.topology.jobs_stream}")
    leader = info["cluster"]["leader"]
    if leader == NODES[0]:
        # Only the first node has a port on this machine: another one leads before it is killed.
        await bus.connection.api(f"STREAM.LEADER.STEPDOWN.{bus.topology.jobs_stream}")
        await anyio.sleep(3)
        info = await bus.connection.api(f"STREAM.INFO.{bus.topology.jobs_stream}")
        leader = info["cluster"]["leader"]
    [container] = compose.containers(leader)
    await anyio.to_thread.run_sync(docker, "kill", container)
    await anyio.sleep(10)
    await anyio.to_thread.run_sync(docker, "start", container)


async def _cut_off_a_host(compose: Compose) -> None:
    host = compose.containers("plain")[0]
    await anyio.to_thread.run_sync(compose.cut_off, host)
    await anyio.sleep(2 * LEASE)
    await anyio.to_thread.run_sync(compose.heal, host)


async def _roll(compose: Compose) -> None:
    """Restart every container, one after the other, as an upgrade does."""
    for service in ("plain", "scheduler-1", "scheduler-2", *NODES[1:], NODES[0]):
        for container in compose.containers(service):
            await anyio.to_thread.run_sync(docker, "restart", "--time", "20", container)
            await anyio.sleep(8 if service in NODES else 2)
