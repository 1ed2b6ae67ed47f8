"""What a fleet tells its observer: each thing that happens to a job, once, however long the job runs."""

import datetime as dt
from collections import Counter
from pathlib import Path

import anyio
import pytest

from h2kbus.client import Bus
from h2kbus.errors import ErrorCode
from h2kbus.quotas import set_quota
from h2kbus.telemetry import (
    AttemptEnded,
    Beaten,
    CommandAnswered,
    DeadLettered,
    DutyRound,
    Event,
    FleetSeen,
    JobMoved,
    LeaseLost,
    Redelivered,
    Telemetry,
)
from scheduler.census import Census
from subjects.commands import Verb
from subjects.lifecycle import failed
from subjects.quota import Quota
from subjects.result import JobError
from subjects.spec import JobSpec
from subjects.states import State
from tests.conftest import Fleet, rehearsal

pytestmark = pytest.mark.anyio

BY_THE_CLOCK = (Beaten, DutyRound, FleetSeen)


@pytest.fixture
def told(fleet: Fleet) -> list[Event]:
    """Everything that the fleet tells, in order; ask for it before the fleet is started."""
    events: list[Event] = []
    fleet.told = Telemetry(events.append)
    return events


@pytest.fixture
async def observed(told: list[Event], fleet: Fleet) -> list[Event]:
    await fleet.scheduler()
    await fleet.worker()
    return told


async def until(told: list[Event], kind: type[Event], count: int = 1) -> list[Event]:
    with anyio.fail_after(15):
        while len(found := [each for each in told if isinstance(each, kind)]) < count:
            await anyio.sleep(0.01)
    return found


def moves(told: list[Event]) -> list[tuple[str, str]]:
    return [(each.state, each.code) for each in told if isinstance(each, JobMoved)]


async def test_completed_job_is_told_from_queue_to_end(bus: Bus, observed: list[Event]) -> None:
    await bus.result(await bus.submit(rehearsal()))
    await until(observed, AttemptEnded)
    assert moves(observed) == [("QUEUED", ""), ("RUNNING", ""), ("COMPLETED", "")]
    assert {each.operation for each in observed if isinstance(each, JobMoved)} == {"rehearse"}


async def test_failed_attempts_are_told_with_their_codes(bus: Bus, observed: list[Event]) -> None:
    job = rehearsal(fail="TOOL_FAILED", policy={"retry_count": 0})
    await bus.result(await bus.submit(job))
    await until(observed, AttemptEnded)
    assert moves(observed)[-1] == ("FAILED", "TOOL_FAILED")


async def test_refused_job_is_told_as_failed_and_as_a_dead_letter(bus: Bus, observed: list[Event]) -> None:
    await bus.submit(rehearsal(operation="frob"))
    await until(observed, CommandAnswered)
    assert moves(observed) == [("FAILED", "INVALID_SPEC")]
    assert DeadLettered("invalid-spec") in observed


@pytest.mark.slow
async def test_command_that_has_to_wait_is_told_as_deferred_and_as_redelivered(
    bus: Bus, observed: list[Event]
) -> None:
    subject = bus.grammar.command("tester", Verb.CANCEL, "no-such-job")
    await bus.connection.publish(subject, b"")
    await until(observed, Redelivered)
    assert CommandAnswered("cancel", "deferred") in observed


@pytest.mark.slow
async def test_command_beyond_a_quota_is_told_as_refused(bus: Bus, observed: list[Event]) -> None:
    quota = Quota(queued=0, by="operator", at=dt.datetime.now(dt.UTC))
    await set_quota(bus.connection, bus.topology, "tester", quota)
    with anyio.fail_after(15):
        while CommandAnswered("submit", "refused") not in observed:
            await bus.submit(rehearsal())
            await anyio.sleep(0.5)


async def test_cancelled_job_is_told_by_whoever_ends_it(bus: Bus, fleet: Fleet, told: list[Event]) -> None:
    await fleet.scheduler()
    job_id = await bus.submit(rehearsal())
    await bus.verdict(job_id)
    await bus.cancel(job_id)
    await bus.result(job_id)
    await until(told, CommandAnswered, 2)
    assert moves(told) == [("QUEUED", ""), ("CANCELLED", "CANCELLED")]


@pytest.mark.slow
async def test_telling_of_a_job_costs_the_same_however_long_it_runs(bus: Bus, observed: list[Event]) -> None:
    """Neither progress nor renewals are told: the price of a job is five calls."""
    kinds = []
    for seconds in (0.0, 3.0):
        observed.clear()
        await bus.result(await bus.submit(rehearsal(seconds=seconds)))
        await until(observed, AttemptEnded)
        kinds.append(Counter(type(each) for each in observed if not isinstance(each, BY_THE_CLOCK)))
    assert kinds[0] == kinds[1] == {JobMoved: 3, CommandAnswered: 1, AttemptEnded: 1}


async def test_attempt_is_told_with_the_time_of_each_phase(bus: Bus, observed: list[Event]) -> None:
    await bus.result(await bus.submit(rehearsal(seconds=0.2)))
    [ended] = await until(observed, AttemptEnded)
    assert isinstance(ended, AttemptEnded)
    assert set(ended.phase_seconds) == {"first", "second"}
    # Each time is rounded to a tenth of a millisecond.
    assert ended.seconds + 0.001 >= sum(ended.phase_seconds.values()) > 0


async def test_attempt_is_told_with_what_its_tools_read_and_wrote(
    bus: Bus, observed: list[Event], vmdk: Path, tmp_path: Path
) -> None:
    await bus.result(await bus.submit(conversion(vmdk, tmp_path)), check=True)
    [ended] = await until(observed, AttemptEnded)
    assert isinstance(ended, AttemptEnded)
    assert ended.read_bytes > 0
    assert ended.written_bytes > 0


def conversion(image: Path, out: Path) -> JobSpec:
    return rehearsal(operation="convert", image=str(image), output=str(out))


@pytest.mark.slow
async def test_attempt_that_lost_its_job_is_told_as_lost(bus: Bus, observed: list[Event]) -> None:
    job_id = await bus.submit(rehearsal(seconds=30))
    with anyio.fail_after(10):
        while not (await bus.verdict(job_id) and (await bus.status(job_id)).state.leased):
            await anyio.sleep(0.02)
    error = JobError(code=ErrorCode.WORKER_LOST, message="made up")
    entry = await bus.store.get(job_id)
    ended = failed(entry.record, error, now=entry.record.updated_at, by="somebody")
    await bus.store.swap(ended, entry.revision)
    [lost] = await until(observed, LeaseLost)
    [attempt] = await until(observed, AttemptEnded)
    assert lost == LeaseLost("rehearse")
    assert isinstance(attempt, AttemptEnded)
    assert attempt.state == "LOST"
    assert (State.COMPLETED, "") not in moves(observed)


async def test_heartbeat_tells_of_the_worker(observed: list[Event]) -> None:
    [beat] = (await until(observed, Beaten))[:1]
    assert isinstance(beat, Beaten)
    assert beat.worker.worker_id == "worker-1"
    assert beat.worker.max_concurrent_jobs == 2


async def test_scheduler_tells_of_every_lane_and_worker(bus: Bus, fleet: Fleet, told: list[Event]) -> None:
    await fleet.scheduler()
    await bus.verdict(await bus.submit(rehearsal()))
    await fleet.worker()
    await fleet.scheduler("scheduler-2")
    [_, seen] = (await until(told, FleetSeen, 2))[:2]
    assert isinstance(seen, FleetSeen)
    assert [each.worker_id for each in seen.workers] == ["worker-1"]
    assert 0 <= seen.silent_seconds["worker-1"] < 30
    assert [each.priority for each in seen.loads] == [5]
    assert seen.workers[0].evidence == {}


async def test_fleet_that_nobody_observes_is_not_looked_at(
    bus: Bus, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all lanes and workers is the one thing that costs the bus something."""
    looks: list[Census] = []

    async def look(self: Census) -> None:
        looks.append(self)

    monkeypatch.setattr(Census, "run", look)
    await fleet.scheduler()
    await fleet.worker()
    await bus.result(await bus.submit(rehearsal()))
    assert looks == []
    fleet.told = Telemetry(lambda _: None)
    await fleet.scheduler("scheduler-2")
    assert len(looks) == 1
