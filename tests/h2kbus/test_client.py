"""What the Python client promises, with and without a scheduler."""

import anyio
import msgspec
import pytest

import h2kbus
from h2kbus.client import Bus
from h2kbus.connection import Connection
from h2kbus.errors import (
    DuplicateJob,
    ErrorCode,
    InvalidMessage,
    JobFinished,
    JobNotFound,
    NotProvisioned,
    OperationFailed,
)
from h2kbus.settings import ConnectionSettings
from h2kbus.store import Entry
from subjects.spec import MAX_SPEC_BYTES
from subjects.states import State
from tests.conftest import Fleet, rehearsal


async def commands(bus: Bus) -> int:
    state = (await bus.connection.api(f"STREAM.INFO.{bus.topology.commands_stream}"))["state"]
    count: int = state["messages"]
    return count


async def finish(bus: Bus, **job: object) -> str:
    job_id = await bus.submit(rehearsal(**job))
    await bus.verdict(job_id)
    await bus.result(job_id)
    return job_id


@pytest.fixture
async def queueing(fleet: Fleet) -> Fleet:
    """A fleet with a scheduler and no worker."""
    await fleet.scheduler()
    return fleet


async def test_submission_is_stored_before_any_scheduler_reads_it(bus: Bus, provisioned: Connection) -> None:
    job_id = await bus.submit(rehearsal())
    assert await bus.is_waiting(job_id)


async def test_submission_without_an_id_gets_one_each_time(bus: Bus, provisioned: Connection) -> None:
    assert await bus.submit(rehearsal()) != await bus.submit(rehearsal())
    assert await commands(bus) == 2


async def test_same_id_waits_once(bus: Bus, provisioned: Connection) -> None:
    assert [await bus.submit(rehearsal(job_id="once")) for _ in range(3)] == ["once"] * 3
    assert await commands(bus) == 1


async def test_same_job_again_changes_nothing(bus: Bus, queueing: Fleet) -> None:
    spec = rehearsal(job_id="again")
    await bus.submit(spec)
    first = await bus.verdict("again", spec)
    await bus.submit(spec)
    await until_read(bus)
    assert await bus.verdict("again", spec) == first


async def until_read(bus: Bus) -> None:
    with anyio.fail_after(5):
        while await commands(bus):
            await anyio.sleep(0.01)


async def test_id_of_another_job_is_refused_by_the_verdict(bus: Bus, queueing: Fleet) -> None:
    await bus.submit(rehearsal(job_id="taken"))
    await bus.verdict("taken")
    other = rehearsal(job_id="taken", seconds=1)
    await bus.submit(other)
    with pytest.raises(DuplicateJob, match="another job has the id taken"):
        await bus.verdict("taken", other)


async def test_id_of_another_job_is_told_among_many_verdicts(bus: Bus, queueing: Fleet) -> None:
    specs = {"first": rehearsal(job_id="first"), "second": rehearsal(job_id="second")}
    for spec in specs.values():
        await bus.submit(spec)
    asked = {**specs, "second": rehearsal(job_id="second", seconds=1)}
    words = {job_id: type(word) async for job_id, word in bus.verdicts(asked)}
    assert words == {"first": Entry, "second": DuplicateJob}


async def test_there_is_no_verdict_without_a_scheduler(bus: Bus, provisioned: Connection) -> None:
    job_id = await bus.submit(rehearsal())
    assert await bus.verdict(job_id, timeout=0.1) is None
    assert [word async for word in bus.verdicts({job_id: None}, timeout=0.1)] == []


async def test_verdict_comes_as_soon_as_a_scheduler_has_read_the_job(bus: Bus, fleet: Fleet) -> None:
    async with anyio.create_task_group() as group:
        await fleet.scheduler()
        job_id = await bus.submit(rehearsal(job_id="seen"))
        found: list[Entry | None] = []

        async def ask() -> None:
            found.append(await bus.verdict(job_id))

        group.start_soon(ask)
    assert found[0] is not None
    assert found[0].record.state is State.QUEUED


async def test_nothing_can_be_submitted_before_the_streams_exist(bus: Bus) -> None:
    with pytest.raises(NotProvisioned):
        await bus.submit(rehearsal())


async def test_asking_what_waits_before_the_streams_exist_says_so(bus: Bus) -> None:
    with pytest.raises(NotProvisioned):
        await bus.is_waiting("any")


async def test_unknown_job_has_no_status(bus: Bus, provisioned: Connection) -> None:
    with pytest.raises(JobNotFound):
        await bus.status("unknown")


async def test_unknown_job_has_no_result(bus: Bus, provisioned: Connection) -> None:
    with pytest.raises(JobNotFound):
        await bus.result("unknown")


async def test_unknown_job_cannot_be_watched(bus: Bus, provisioned: Connection) -> None:
    with pytest.raises(JobNotFound):
        await anext(bus.watch("unknown"))


async def test_unknown_job_cannot_be_cancelled_or_retried(bus: Bus, provisioned: Connection) -> None:
    with pytest.raises(JobNotFound):
        await bus.cancel("unknown")
    with pytest.raises(JobNotFound):
        await bus.retry("unknown")


async def test_job_is_found_while_a_scheduler_reads_its_submission(
    bus: Bus, fleet: Fleet, provisioned: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await bus.submit(rehearsal())
    look = bus.is_waiting

    async def look_after_the_scheduler(job_id: str) -> bool:
        await fleet.scheduler()
        await bus.verdict(job_id)
        await until_read(bus)
        return await look(job_id)

    monkeypatch.setattr(bus, "is_waiting", look_after_the_scheduler)
    async for event in bus.watch(job_id):
        assert event.state is State.QUEUED
        return


async def test_unknown_job_does_not_wait(bus: Bus, provisioned: Connection) -> None:
    assert not await bus.is_waiting("unknown")


async def test_job_that_was_read_does_not_wait_any_more(bus: Bus, queueing: Fleet) -> None:
    job_id = await bus.submit(rehearsal())
    await bus.verdict(job_id)
    await until_read(bus)
    assert not await bus.is_waiting(job_id)


async def test_job_that_waits_can_be_watched_to_its_end(
    bus: Bus, fleet: Fleet, provisioned: Connection
) -> None:
    job_id = await bus.submit(rehearsal())
    states: list[State] = []

    async def follow() -> None:
        states.extend([event.state async for event in bus.watch(job_id)])

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        await fleet.scheduler()
        await fleet.worker()
    assert states == [State.QUEUED, State.RUNNING, State.COMPLETED]


@pytest.mark.slow
async def test_job_that_waits_may_be_cancelled(bus: Bus, fleet: Fleet, provisioned: Connection) -> None:
    job_id = await bus.submit(rehearsal())
    await bus.cancel(job_id)
    await fleet.scheduler()
    with anyio.fail_after(10):
        assert (await bus.result(job_id)).state is State.CANCELLED


async def test_result_of_a_failed_job_raises_when_checked(bus: Bus, running: Fleet) -> None:
    job_id = await finish(bus, fail="IMAGE_UNSAFE")
    assert (await bus.result(job_id)).state is State.FAILED
    with pytest.raises(OperationFailed, match="made up") as caught:
        await bus.result(job_id, check=True)
    assert caught.value.error_code is ErrorCode.IMAGE_UNSAFE


async def test_result_of_a_cancelled_job_raises_when_checked(bus: Bus, queueing: Fleet) -> None:
    job_id = await bus.submit(rehearsal())
    await bus.verdict(job_id)
    await bus.cancel(job_id, "not needed")
    with pytest.raises(OperationFailed, match="not needed") as caught:
        await bus.result(job_id, check=True)
    assert caught.value.error_code is ErrorCode.CANCELLED


async def test_result_of_a_completed_job_passes_the_check(bus: Bus, running: Fleet) -> None:
    assert (await bus.result(await finish(bus), check=True)).state is State.COMPLETED


async def test_finished_job_cannot_be_cancelled(bus: Bus, running: Fleet) -> None:
    job_id = await finish(bus)
    with pytest.raises(JobFinished, match="COMPLETED already"):
        await bus.cancel(job_id)


async def test_cancelling_twice_is_once(bus: Bus, provisioned: Connection) -> None:
    job_id = await bus.submit(rehearsal())
    await bus.cancel(job_id)
    await bus.cancel(job_id)
    assert await commands(bus) == 2


async def test_unfinished_job_cannot_be_retried(bus: Bus, queueing: Fleet) -> None:
    job_id = await bus.submit(rehearsal())
    await bus.verdict(job_id)
    with pytest.raises(InvalidMessage, match="only a finished job can be retried"):
        await bus.retry(job_id)


async def test_new_job_of_a_retry_can_be_waited_for_at_once(bus: Bus, fleet: Fleet) -> None:
    drain = await fleet.scheduler()
    await fleet.worker()
    job_id = await finish(bus)
    drain()
    new_id = await bus.retry(job_id)
    await fleet.scheduler("scheduler-2")
    with anyio.fail_after(10):
        assert (await bus.result(new_id)).parent == job_id


async def test_each_retry_gives_the_id_of_a_job_that_will_be(bus: Bus, fleet: Fleet) -> None:
    drain = await fleet.scheduler()
    await fleet.worker()
    job_id = await finish(bus)
    drain()
    await anyio.sleep(0.1)
    asked = {await bus.retry(job_id), await bus.retry(job_id)}
    await fleet.scheduler("scheduler-2")
    for new_id in asked:
        assert await bus.verdict(new_id, timeout=1) is not None


async def test_job_that_is_too_large_is_refused_before_it_is_sent(bus: Bus, provisioned: Connection) -> None:
    with pytest.raises(InvalidMessage, match=f"{MAX_SPEC_BYTES} are allowed"):
        await bus.submit(rehearsal(mark="x" * MAX_SPEC_BYTES))
    assert await commands(bus) == 0


async def test_many_submissions_keep_their_order(bus: Bus, provisioned: Connection) -> None:
    asked = [f"j{number}" for number in range(600)]
    specs = (rehearsal(job_id=each) for each in asked)
    assert [job_id async for job_id in bus.submit_many(specs)] == asked
    assert await commands(bus) == 600


async def test_submitting_none_is_nothing(bus: Bus) -> None:
    assert [job_id async for job_id in bus.submit_many([])] == []


async def test_submitter_is_the_audit_trails_first_word(bus: Bus, queueing: Fleet) -> None:
    job_id = await bus.submit(rehearsal())
    await bus.verdict(job_id)
    record = await bus.status(job_id)
    assert (record.submitted_by, record.transitions[0].reason) == ("tester", "submitted by tester")


async def test_address_alone_is_enough(server_url: str) -> None:
    async with h2kbus.connect(server_url) as bus:
        assert bus.connection.is_connected


async def test_address_beats_that_of_the_settings(settings: ConnectionSettings) -> None:
    elsewhere = msgspec.structs.replace(settings, url="nats://127.0.0.1:1")
    async with h2kbus.connect(settings.url, settings=elsewhere) as bus:
        assert bus.topology.grammar.root == settings.root
