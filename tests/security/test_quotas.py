"""A submitter gets what its quota allows; what is more is refused, fills nothing, and holds nobody up."""

import subprocess
from pathlib import Path

import anyio
import pytest

from h2kbus.changes import ChangeFeed
from h2kbus.client import Bus
from h2kbus.errors import QuotaExceeded
from h2kbus.quotas import read_quotas, read_refusal, set_quota
from scheduler.gate import Gate
from scheduler.stock import Stocks
from subjects.codec import convert, encode
from subjects.commands import Verb
from subjects.quota import RATE_SECONDS, Allowance, Quota
from subjects.states import State
from tests.conftest import Fleet, Program, rehearsal
from tests.scheduler.conftest import count, send, until_read

# Each waits until the schedulers have read a quota.
pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FLOOD = 300


@pytest.fixture
async def scheduling(fleet: Fleet) -> Fleet:
    await fleet.scheduler()
    return fleet


async def allow(bus: Bus, submitter: str, **limits: float) -> None:
    """Set a quota, and wait until schedulers have certainly read it."""
    quota = convert(Quota, {**limits, "by": "operator", "at": "2026-11-25T12:00:00Z"})
    await set_quota(bus.connection, bus.topology, submitter, quota)
    await anyio.sleep(1.6)


async def flood(
    bus: Bus, jobs: int, *, submitter: str = "mallory", start: int = 0, body: bytes = b""
) -> None:
    """As many submissions as one can send."""
    commands = (
        (bus.grammar.command(submitter, Verb.SUBMIT, f"{submitter}-{number}"), body or encode(rehearsal()))
        for number in range(start, start + jobs)
    )
    await bus.connection.publish_together(*commands)
    await until_read(bus)


async def of_mallory(bus: Bus, state: State | None = None) -> int:
    return len([each async for each in bus.jobs(state=state) if each.submitted_by == "mallory"])


async def test_flood_makes_as_many_records_as_the_quota_allows_and_no_more(
    bus: Bus, scheduling: Fleet
) -> None:
    await allow(bus, "mallory", queued=10)
    await flood(bus, FLOOD)
    assert await of_mallory(bus) == 10
    assert await count(bus, bus.topology.dead_stream) == 0
    # A job's first event goes out unconfirmed, so it may come a little later.
    with anyio.move_on_after(5):
        while await count(bus, bus.topology.progress_stream) < 10:
            await anyio.sleep(0.02)
    assert await count(bus, bus.topology.progress_stream) == 10


async def test_without_a_quota_the_same_flood_gets_in(bus: Bus, scheduling: Fleet) -> None:
    await flood(bus, FLOOD)
    assert await of_mallory(bus) == FLOOD


async def test_polite_submitter_waits_for_no_more_jobs_than_the_flooder_may_have(
    bus: Bus, scheduling: Fleet, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    await allow(bus, "*", queued=10)
    noisy = encode(rehearsal(mark=str(mark)))
    await flood(bus, FLOOD, body=noisy)
    bus.submitter = "polite"
    await bus.submit(rehearsal(job_id="polite"))
    await scheduling.worker(slots=1)
    assert (await bus.verdict("polite")) is not None
    with anyio.fail_after(30):
        assert (await bus.result("polite")).state is State.COMPLETED
    assert len(mark.read_text().splitlines()) == 10


async def test_refused_submitter_learns_why(bus: Bus, scheduling: Fleet) -> None:
    await allow(bus, "tester", queued=1)
    await bus.submit(rehearsal(job_id="first"))
    assert await bus.verdict("first") is not None
    await bus.submit(rehearsal(job_id="second"))
    with pytest.raises(QuotaExceeded, match="tester: 1 jobs that have not ended are allowed"):
        await bus.verdict("second")
    refusal = await read_refusal(bus.connection, bus.topology, "tester")
    assert refusal is not None
    assert refusal.refused == 1


async def test_room_comes_back_when_a_job_ends(bus: Bus, scheduling: Fleet) -> None:
    await allow(bus, "tester", queued=1)
    await bus.submit(rehearsal(job_id="first"))
    await bus.verdict("first")
    await bus.cancel("first")
    await bus.result("first")
    await anyio.sleep(1.6)
    await bus.submit(rehearsal(job_id="second"))
    assert await bus.verdict("second") is not None


async def test_job_that_was_refused_can_be_submitted_again_under_its_id(bus: Bus, scheduling: Fleet) -> None:
    await allow(bus, "tester", queued=0)
    await bus.submit(rehearsal(job_id="again"))
    with pytest.raises(QuotaExceeded):
        await bus.verdict("again")
    await allow(bus, "tester", queued=1)
    await bus.submit(rehearsal(job_id="again"))
    assert await bus.verdict("again") is not None


async def test_bytes_of_waiting_jobs_are_bounded(bus: Bus, scheduling: Fleet) -> None:
    large = encode(rehearsal(mark="x" * 4000))
    await allow(bus, "mallory", bytes=10 * len(large))
    await flood(bus, FLOOD, body=large)
    assert await of_mallory(bus) == 10


@pytest.mark.parametrize("body", [b"no json", b"{}"])
async def test_rate_bounds_invalid_jobs_and_their_dead_letters_too(
    bus: Bus, scheduling: Fleet, body: bytes
) -> None:
    """An invalid job makes a record and a letter, and it ends at once: only the rate holds it up."""
    await allow(bus, "mallory", rate=0.1)
    await flood(bus, FLOOD, body=body)
    assert 6 <= await of_mallory(bus) <= 8
    assert await count(bus, bus.topology.dead_stream) == await of_mallory(bus)


async def test_rate_bounds_cancellations_on_their_own(bus: Bus, scheduling: Fleet) -> None:
    await allow(bus, "mallory", rate=0.1, queued=5)
    await flood(bus, FLOOD)
    for number in range(5):
        await send(bus, "cancel", f"mallory-{number}", submitter="mallory")
    await until_read(bus)
    assert await of_mallory(bus, State.CANCELLED) == 5
    for number in range(50):
        await send(bus, "cancel", f"nobody-{number}", submitter="mallory")
    await until_read(bus)
    assert await count(bus, bus.topology.dead_stream) <= 3


async def test_commands_that_are_none_count_too(bus: Bus, scheduling: Fleet) -> None:
    await allow(bus, "mallory", rate=0.1)
    for number in range(50):
        await send(bus, "levitate", f"j{number}", submitter="mallory")
    await until_read(bus)
    assert await count(bus, bus.topology.dead_stream) <= 8


async def test_own_quota_counts_in_the_place_of_everybodys(bus: Bus, scheduling: Fleet) -> None:
    await allow(bus, "*", queued=1)
    await allow(bus, "mallory", queued=3)
    await flood(bus, 10)
    await flood(bus, 10, submitter="other")
    assert await of_mallory(bus) == 3
    assert len([each async for each in bus.jobs()]) == 4


async def test_quota_holds_after_the_scheduler_was_started_again(bus: Bus, fleet: Fleet) -> None:
    drain = await fleet.scheduler()
    await allow(bus, "mallory", queued=10)
    await flood(bus, 7)
    drain()
    await fleet.scheduler("scheduler-2")
    await flood(bus, FLOOD, start=7)
    assert await of_mallory(bus) == 10


async def test_second_scheduler_knows_what_the_first_has_let_in(bus: Bus, fleet: Fleet) -> None:
    drain = await fleet.scheduler()
    await fleet.scheduler("scheduler-2")
    await allow(bus, "mallory", queued=10)
    await flood(bus, 10)
    await anyio.sleep(2.5)
    drain()
    await flood(bus, FLOOD, start=10)
    assert await of_mallory(bus) == 10


async def test_quota_counts_what_was_there_before_it(bus: Bus, scheduling: Fleet) -> None:
    await flood(bus, 8)
    await allow(bus, "mallory", queued=10)
    await flood(bus, FLOOD, start=8)
    assert await of_mallory(bus) == 10


async def test_quota_holds_from_the_moment_that_it_is_known(bus: Bus, scheduling: Fleet) -> None:
    await flood(bus, 10)
    gate = Gate(bus.connection, bus.topology, "scheduler-2")
    await gate.refresh()
    assert gate.objection("mallory", Verb.SUBMIT, 1) is None
    await allow(bus, "mallory", queued=10)
    await gate.refresh()
    assert gate.objection("mallory", Verb.SUBMIT, 1) == "10 jobs that have not ended are allowed"
    assert gate.objection("mallory", Verb.CANCEL, 1) is None
    assert gate.objection("ann", Verb.SUBMIT, 1) is None


async def test_hundreds_at_once_do_not_all_find_the_same_room(bus: Bus, scheduling: Fleet) -> None:
    """What is being made counts already, so that a burst gets in no further than a stream."""
    await allow(bus, "mallory", queued=1)
    await flood(bus, 250)
    assert await of_mallory(bus) == 1


async def test_count_of_a_submitter_follows_its_jobs(bus: Bus, running: Fleet) -> None:
    stocks = Stocks(ChangeFeed(bus.connection, bus.topology))
    for number in range(5):
        await bus.submit(rehearsal(job_id=f"done-{number}"))
        await bus.verdict(f"done-{number}")
        await bus.result(f"done-{number}")
    await bus.submit(rehearsal(job_id="runs", seconds=30))
    entry = await bus.verdict("runs")
    assert entry is not None
    await stocks.refresh()
    found = stocks.of("tester")
    assert (found.jobs, found.bytes) == (1, entry.record.spec_bytes)
    await bus.cancel("runs")
    await bus.result("runs")
    await stocks.refresh()
    assert stocks.of("tester").jobs == 0
    assert stocks.of("tester").bytes == 0


def test_allowance_grows_with_time_up_to_a_minutes_worth() -> None:
    allowance = Allowance(2.0, 0.0)
    assert sum(allowance.take(2.0, 0.0) for _ in range(500)) == 2 * RATE_SECONDS
    assert sum(allowance.take(2.0, 1.0) for _ in range(500)) == 2
    assert sum(allowance.take(2.0, 1e6) for _ in range(500)) == 2 * RATE_SECONDS


async def test_program_sets_shows_and_clears_quotas_and_says_when_one_is_exceeded(
    bus: Bus, scheduling: Fleet, program: Program
) -> None:
    async def call(*words: str) -> "subprocess.CompletedProcess[str]":
        return await anyio.to_thread.run_sync(program, *words)

    done = await call("quota", "tester", "--queued", "1", "--bytes", "2M", "--rate", "50")
    assert done.stdout == "tester: queued 1 bytes 2000000 rate 50\n"
    assert (await call("quota", "*", "--unlimited")).stdout == "*: unlimited\n"
    assert [line.split() for line in (await call("quotas")).stdout.splitlines()] == [
        ["SUBMITTER", "QUEUED", "BYTES", "RATE"], ["*", "-", "-", "-"], ["tester", "1", "2000000", "50"],
    ]  # fmt: skip
    await anyio.sleep(1.6)
    words = ("submit", "--operation", "rehearse", "--image", "d.img", "--output-dir", "out", "--job-id")
    assert (await call(*words, "first")).returncode == 0
    for more in ((), ("--wait",)):
        done = await call(*words, "second", *more)
        assert done.returncode == 3
        assert "job second: QUOTA_EXCEEDED: tester: 1 jobs that have not ended are allowed" in done.stderr
    assert (await call("quota", "tester", "--clear")).stdout == "tester: no quota\n"
    assert list((await read_quotas(bus.connection, bus.topology)).by_name) == ["*"]


@pytest.mark.parametrize(
    "words",
    [("ann",), ("ann", "--clear", "--queued", "3"), ("ann", "--bytes", "lots"), ("a.b", "--queued", "3")],
)
def test_quota_that_makes_no_sense_is_refused(local: Program, words: tuple[str, ...]) -> None:
    assert local("quota", *words).returncode == 2
