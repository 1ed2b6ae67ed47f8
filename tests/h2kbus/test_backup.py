"""A bus moves, with all its jobs, from one server to a cluster of three."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup

import h2kbus
from h2kbus.backup import back_up, restore
from h2kbus.client import Bus
from h2kbus.connection import Connection, connect
from h2kbus.errors import ContractConflict, H2KBusError, NotProvisioned, SettingsError
from h2kbus.plugins import load_catalog
from h2kbus.replicas import wait_for_copies
from h2kbus.settings import ConnectionSettings
from scheduler.service import Scheduler
from subjects.grammar import Grammar
from subjects.lease import LEASE_SECONDS
from subjects.operations import plugin_token
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import REHEARSE, Fleet, Program, rehearsal, worker_profile
from tests.h2kbus.conftest import OwnServer
from tests.h2kbus.test_setup import NODES, Cluster
from workers.service import Worker

pytestmark = pytest.mark.anyio

PROFILE = worker_profile("w1", tokens=(plugin_token("rehearse"),), slots=4)


async def working(
    group: TaskGroup,
    settings: ConnectionSettings,
    *connections: Connection,
    lease_seconds: float = LEASE_SECONDS,
) -> None:
    """A scheduler, and a worker if there is a second connection."""
    topology = Topology(Grammar(settings.root), lease_seconds=lease_seconds)
    catalog = load_catalog([REHEARSE])
    await group.start(Scheduler(connections[0], topology, catalog, "scheduler-1").serve)
    for connection in connections[1:]:
        await group.start(functools.partial(Worker(connection, topology, catalog, PROFILE).serve, grace=0.0))


@pytest.fixture
async def saved(settings: ConnectionSettings, tmp_path: Path) -> tuple[ConnectionSettings, Path]:
    """The backup of a bus with ten jobs done, 200 in their lane, and three that no scheduler has read."""
    async with h2kbus.connect(settings=settings) as bus, connect(settings) as one, connect(settings) as two:
        async with anyio.create_task_group() as group:
            await working(group, settings, one, two)
            done = [await bus.submit(rehearsal(job_id=f"done-{number}")) for number in range(10)]
            with anyio.fail_after(30):
                assert [record.state async for record in bus.results(done)] == [State.COMPLETED] * 10
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            await working(group, settings, one)
            specs = [rehearsal(job_id=f"lane-{number}") for number in range(200)]
            for job_id in [each async for each in bus.submit_many(specs)]:
                await bus.verdict(job_id)
            group.cancel_scope.cancel()
        for number in range(3):
            await bus.submit(rehearsal(job_id=f"command-{number}"))
        directory = tmp_path / "backup"
        told = {each.stream: each async for each in back_up(bus.connection, bus.topology, directory)}
        assert told[bus.topology.jobs_stream].messages == 200
        assert told[bus.topology.commands_stream].messages == 3
    return settings, directory


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    servers = Cluster(tmp_path / "cluster")
    yield servers
    servers.stop()


async def formed(settings: ConnectionSettings) -> None:
    """Until the nodes have found each other and chosen who leads."""
    async with connect(settings) as connection:
        with anyio.fail_after(30):
            while True:
                try:
                    await connection.api("STREAM.NAMES", {})
                except H2KBusError:
                    await anyio.sleep(0.2)
                else:
                    return


@pytest.mark.slow
async def test_all_jobs_go_on_in_the_cluster_that_a_lone_server_moves_to(
    saved: tuple[ConnectionSettings, Path], cluster: Cluster
) -> None:
    old, directory = saved
    new = msgspec.structs.replace(old, url=",".join(cluster.urls))
    topology = Topology(Grammar(new.root))
    await formed(new)
    async with h2kbus.connect(settings=new) as bus, connect(new) as one, connect(new) as two:
        told = [each async for each in restore(one, topology, directory, NODES)]
        copies = await wait_for_copies(one, topology, 60)
        assert {each.wanted for each in copies} == {NODES}
        async with h2kbus.connect(settings=old) as before:
            assert await bus.store.find("done-3") == await before.store.find("done-3")
        assert sum(each.messages for each in told) > 213
        async with anyio.create_task_group() as group:
            await working(group, new, one, two)
            waiting = [
                *(f"lane-{number}" for number in range(200)),
                *(f"command-{each}" for each in range(3)),
            ]
            with anyio.fail_after(100):
                assert {record.state async for record in bus.results(waiting)} == {State.COMPLETED}
            group.cancel_scope.cancel()
        assert [(await bus.status(each)).attempt for each in waiting] == [1] * 203


@pytest.mark.slow
async def test_backup_of_a_bus_at_work_has_every_job_that_it_had_accepted(
    fleet: Fleet, bus: Bus, own_server: Callable[..., OwnServer], tmp_path: Path
) -> None:
    """Taken while jobs are admitted, run and end; on the other server each of them comes to its end.

    Those that ran at that moment count as lost with their worker, and run once more.
    """
    await fleet.scheduler(lease_seconds=3.0)
    await fleet.worker("w1", slots=4)
    again = {"retry_count": 1}
    specs = [rehearsal(job_id=f"j{number}", seconds=0.02, policy=again) for number in range(300)]
    ids = [each async for each in bus.submit_many(specs)]
    told = [each async for each in back_up(bus.connection, bus.topology, tmp_path / "backup")]
    assert {each.stream for each in told} == {each.name for each in bus.topology.streams()}
    other = own_server().settings(root=fleet.settings.root)
    async with h2kbus.connect(settings=other) as there, connect(other) as one, connect(other) as two:
        async for _ in restore(one, there.topology, tmp_path / "backup"):
            """Each stream is made before the next one is begun."""
        async with anyio.create_task_group() as group:
            await working(group, other, one, two, lease_seconds=3.0)
            with anyio.fail_after(100):
                assert {record.state async for record in there.results(ids)} == {State.COMPLETED}
            group.cancel_scope.cancel()


async def test_restoring_over_a_bus_changes_nothing(
    provisioned: Connection, topology: Topology, tmp_path: Path
) -> None:
    place = tmp_path / "backup"
    async for _ in back_up(provisioned, topology, place):
        """To the end."""
    with pytest.raises(ContractConflict, match="exists"):
        await anext(restore(provisioned, topology, place))


async def test_backup_never_writes_into_a_directory_that_exists(
    provisioned: Connection, topology: Topology, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="cannot be made"):
        await anext(back_up(provisioned, topology, tmp_path))


async def test_bus_without_streams_has_no_backup(
    connection: Connection, topology: Topology, tmp_path: Path
) -> None:
    with pytest.raises(NotProvisioned, match=topology.commands_stream):
        await anext(back_up(connection, topology, tmp_path / "backup"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda place: (place / "backup.json").write_text("{"), "does not describe"),
        (lambda place: (place / "stream.tar.s2").unlink(), "no whole backup"),
        (lambda place: (place / "backup.json").unlink(), "No such file"),
    ],
    ids=["torn description", "no content", "no description"],
)
async def test_backup_that_is_not_whole_is_refused_before_anything_is_made(
    provisioned: Connection,
    topology: Topology,
    own_server: Callable[..., OwnServer],
    tmp_path: Path,
    spoil: Callable[[Path], object],
    words: str,
) -> None:
    place = tmp_path / "backup"
    async for _ in back_up(provisioned, topology, place):
        """To the end."""
    spoil(place / topology.bucket_stream(topology.settings_bucket))
    async with connect(own_server().settings(root=topology.grammar.root)) as other:
        with pytest.raises(SettingsError, match=words):
            await anext(restore(other, topology, place))
        assert not (await other.api("STREAM.NAMES", {}))["streams"]


@pytest.mark.slow
def test_program_backs_up_and_restores(
    program: Program, own_server: Callable[..., OwnServer], tmp_path: Path
) -> None:
    assert program("setup").returncode == 0
    done = program("--json", "backup", tmp_path / "backup")
    assert done.returncode == 0, done.stderr
    streams = [json.loads(line)["stream"] for line in done.stdout.splitlines()]
    program.environment["H2KBUS_URL"] = own_server().settings().url
    done = program("--json", "restore", tmp_path / "backup")
    assert [json.loads(line)["stream"] for line in done.stdout.splitlines()] == streams
    again = program("restore", tmp_path / "backup")
    assert again.returncode == 3
    assert "CONTRACT_CONFLICT" in again.stderr
