"""Each role does its own work with the rights that it has, through the same code as everybody."""

import base64
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest

from h2kbus.artifacts import find, kept_of, put, read
from h2kbus.audit import verify
from h2kbus.authority import Wanted
from h2kbus.backup import back_up
from h2kbus.client import Bus
from h2kbus.dead import DeadLetters
from h2kbus.errors import JobNotFound, PermissionDenied
from h2kbus.provision import provision
from h2kbus.store import JobStore
from h2kbus.telemetry import Event, FleetSeen
from scheduler.census import Census
from subjects.commands import Verb
from subjects.permissions import Role
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal
from tests.security.access.conftest import TOPOLOGY, Guarded


@pytest.fixture
async def alice(working: Guarded) -> AsyncIterator[Bus]:
    async with working.bus("alice") as bus:
        yield bus


@pytest.fixture
async def olga(working: Guarded) -> AsyncIterator[Bus]:
    async with working.bus("olga") as bus:
        yield bus


@pytest.fixture
async def oscar(working: Guarded) -> AsyncIterator[Bus]:
    async with working.bus("oscar") as bus:
        yield bus


@pytest.fixture
async def root(working: Guarded) -> AsyncIterator[Bus]:
    async with working.bus("root") as bus:
        yield bus


async def test_submitter_sees_the_job_to_its_end(alice: Bus) -> None:
    job_id = await alice.submit(rehearsal(seconds=0.3))
    states = [event.state async for event in alice.watch(job_id)]
    assert State.RUNNING in states
    assert states[-1] is State.COMPLETED
    assert (await alice.status(job_id)).worker_id == "w1"


async def test_record_names_the_submitter_whose_key_it_was(alice: Bus) -> None:
    """Whatever the job itself says; no flag and no variable was given."""
    record = await alice.result(await alice.submit(rehearsal()))
    assert record.submitted_by == "alice"
    assert record.spec is not None
    assert record.spec.audit.requested_by == "tester"


async def test_submitter_cancels_and_retries(alice: Bus) -> None:
    job_id = await alice.submit(rehearsal(seconds=60))
    async for event in alice.watch(job_id):
        if event.state is State.RUNNING:
            await alice.cancel(job_id)
    assert (await alice.status(job_id)).state is State.CANCELLED
    again = await alice.retry(job_id)
    await alice.verdict(again)
    await alice.cancel(again)
    assert (await alice.result(again)).parent == job_id


async def test_many_jobs_are_submitted_and_awaited_at_once(alice: Bus) -> None:
    ids = [job_id async for job_id in alice.submit_many(rehearsal() for _ in range(100))]
    ended = [record.state async for record in alice.results(ids)]
    assert ended == [State.COMPLETED] * 100


async def test_observer_sees_everything(alice: Bus, olga: Bus) -> None:
    job_id = await alice.submit(rehearsal())
    await alice.result(job_id)
    assert [event.state async for event in olga.watch(job_id)][-1] is State.COMPLETED
    assert job_id in [record.job_id async for record in olga.jobs()]
    assert "w1" in [worker.worker_id for worker in await olga.workers()]
    assert [load.lane for load in await olga.lane_loads()] == ["op-rehearse"]
    assert await olga.limits() == []
    assert [letter async for letter in DeadLetters(olga).read()] == []
    with pytest.raises(JobNotFound):
        await olga.result("no-such-job")


async def test_observer_submits_nothing(olga: Bus) -> None:
    with pytest.raises(PermissionDenied, match=r"commands\.olga\.submit"):
        await olga.submit(rehearsal())


async def test_operator_orders_workers_about_and_is_heard_at_once(oscar: Bus) -> None:
    await oscar.order("w1", "cordon")
    await until_cordoned(oscar, True)
    await oscar.order("w1", "uncordon")
    await until_cordoned(oscar, False)


async def until_cordoned(bus: Bus, wanted: bool) -> None:
    """Well before the worker would have read its orders by itself."""
    with anyio.fail_after(5):
        while [each.cordoned for each in await bus.workers() if each.worker_id == "w1"] != [wanted]:
            await anyio.sleep(0.02)


async def test_operator_sets_ceilings(oscar: Bus) -> None:
    await oscar.set_ceiling("source-host/esx-07", 2)
    assert [(each.label, each.ceiling) for each in await oscar.limits()] == [("source-host/esx-07", 2)]
    await oscar.set_ceiling("source-host/esx-07", None)
    assert await oscar.limits() == []


async def test_submitter_neither_orders_nor_sets_ceilings(alice: Bus) -> None:
    with pytest.raises(PermissionDenied):
        await alice.order("w1", "cordon")
    with pytest.raises(PermissionDenied):
        await alice.set_ceiling("source-host/esx-07", 1)


async def test_worker_stores_logs_that_nats_tools_read(working: Guarded, root: Bus) -> None:
    data = bytes(range(256)) * 1200
    async with working.connection("w1") as worker:
        await put(worker, TOPOLOGY, "job/1/log", data)
    store = await root.connection.nats.jetstream().object_store(TOPOLOGY.artifacts_store)
    found = io.BytesIO()
    await store.get("job/1/log", writeinto=found)
    assert found.getvalue() == data


async def test_job_ends_with_its_log_stored(alice: Bus, root: Bus, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    spec = rehearsal(operation="inspect", image=str(tmp_path / "disk.img"), output=str(tmp_path / "out"))
    artifacts = msgspec.structs.replace(spec.artifacts, log_upload=True)
    record = await alice.result(await alice.submit(msgspec.structs.replace(spec, artifacts=artifacts)))
    assert record.state is State.COMPLETED
    assert record.result is not None
    assert not any("uploaded" in warning for warning in record.result.warnings)
    key = base64.urlsafe_b64encode(f"{record.job_id}/1/log".encode()).decode()
    stream = f"OBJ_{TOPOLOGY.artifacts_store}"
    assert await root.connection.get_last(stream, f"$O.{TOPOLOGY.artifacts_store}.M.{key}") is not None


async def test_observer_reads_logs(working: Guarded, olga: Bus) -> None:
    async with working.connection("w1") as worker:
        await put(worker, TOPOLOGY, "job/2/log", b"what was logged")
    found = await find(olga.connection, TOPOLOGY, "job/2/log")
    assert found is not None
    assert [chunk async for chunk in read(olga.connection, TOPOLOGY, found)] == [b"what was logged"]


async def test_observer_verifies_what_a_job_has_left(alice: Bus, olga: Bus, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    spec = rehearsal(operation="inspect", image=str(tmp_path / "disk.img"), output=str(tmp_path / "out"))
    artifacts = msgspec.structs.replace(spec.artifacts, log_upload=True)
    record = await alice.result(await alice.submit(msgspec.structs.replace(spec, artifacts=artifacts)))
    found = await kept_of(olga.connection, TOPOLOGY, record.job_id, 2)
    assert [each.name for each in found] == ["log", "report", "manifest"]
    checks = {each.subject: each.verdict async for each in verify(olga, record, 1, None)}
    assert checks["record"] == "ok"
    assert "differs" not in checks.values()


async def test_observer_stores_no_logs(olga: Bus) -> None:
    with pytest.raises(PermissionDenied):
        await put(olga.connection, TOPOLOGY, "job/3/log", b"never said")


async def test_admin_requeues_dead_letters_and_nobody_else_does(alice: Bus, oscar: Bus, root: Bus) -> None:
    subject = alice.grammar.command("alice", Verb.SUBMIT, "broken")
    await alice.connection.publish(subject, b"{}")
    with anyio.fail_after(5):
        while not (found := [each async for each in DeadLetters(root).read(job_id="broken")]):
            await anyio.sleep(0.02)
    with pytest.raises(PermissionDenied):
        await DeadLetters(oscar).requeue(found[0].number)
    assert await DeadLetters(root).requeue(found[0].number)


async def test_admin_makes_and_changes_streams(working: Guarded, root: Bus, tmp_path: Path) -> None:
    assert await provision(root.connection, TOPOLOGY) == []
    taken = [each.stream async for each in back_up(root.connection, TOPOLOGY, tmp_path / "backup")]
    assert len(taken) == len(TOPOLOGY.streams())
    await root.connection.api(f"STREAM.PURGE.{TOPOLOGY.dead_stream}")


@pytest.mark.slow
async def test_fleet_goes_on_while_users_are_added(alice: Bus, working: Guarded) -> None:
    await alice.result(await alice.submit(rehearsal()))
    working.authority.add(Wanted(role=Role.WORKER, name="fresh"))
    working.authority.add(Wanted(role=Role.SUBMITTER, name="carol"))
    await anyio.to_thread.run_sync(working.reload)
    async with contextlib.AsyncExitStack() as stack, anyio.create_task_group() as group:
        await Fleet(working.settings("fresh"), group, stack).worker("fresh")
        carol = await stack.enter_async_context(working.bus("carol"))
        ids = [await bus.submit(rehearsal(seconds=0.5)) for bus in (alice, carol) for _ in range(4)]
        assert {(await alice.result(job_id)).worker_id for job_id in ids} == {"w1", "fresh"}
        live = [event.state async for event in carol.watch(await carol.submit(rehearsal(seconds=0.5)))]
        assert State.PROGRESSING in live
        group.cancel_scope.cancel()


async def test_scheduler_runs_on_a_bus_that_an_admin_has_set_up(guarded: Guarded) -> None:
    async with guarded.connection("s1") as scheduler:
        assert await provision(scheduler, TOPOLOGY) == []


async def test_scheduler_counts_the_fleet_with_the_rights_that_it_has(
    alice: Bus, guarded: Guarded, working: Guarded
) -> None:
    """Its metrics read what nothing else of it does."""
    await alice.result(await alice.submit(rehearsal()))
    seen: list[Event] = []
    async with guarded.connection("s1") as connection:
        store = JobStore(connection, TOPOLOGY)
        await Census(connection, TOPOLOGY, store, seen.append).run_once()
    [look] = seen
    assert isinstance(look, FleetSeen)
    assert look.loads
    assert look.workers


async def test_scheduler_says_which_stream_is_missing_and_who_makes_it(guarded: Guarded) -> None:
    async with guarded.connection("root") as admin, guarded.connection("s1") as scheduler:
        await admin.api(f"STREAM.DELETE.{TOPOLOGY.dead_stream}")
        with pytest.raises(PermissionDenied, match=r"no stream H2K_DEAD; `h2kbus setup`, run as an admin"):
            await provision(scheduler, TOPOLOGY)
        assert await provision(admin, TOPOLOGY) == [TOPOLOGY.dead_stream]


async def test_scheduler_says_which_stream_is_not_as_declared(guarded: Guarded) -> None:
    name = TOPOLOGY.progress_stream
    async with guarded.connection("root") as admin, guarded.connection("s1") as scheduler:
        config = (await admin.api(f"STREAM.INFO.{name}"))["config"]
        await admin.api(f"STREAM.UPDATE.{name}", {**config, "description": "changed"})
        with pytest.raises(PermissionDenied, match=f"stream {name} is not as declared"):
            await provision(scheduler, Topology(TOPOLOGY.grammar))
        assert await provision(admin, TOPOLOGY) == [name]
