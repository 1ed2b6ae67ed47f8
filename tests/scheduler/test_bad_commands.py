"""Commands that cannot be carried out: each ends where it can be seen, and its original is kept."""

import datetime as dt

import anyio
import pytest

from h2kbus.client import Bus
from h2kbus.errors import ErrorCode, NotProvisioned
from subjects.codec import encode
from subjects.commands import CancelCommand, RetryCommand, Verb
from subjects.spec import MAX_SPEC_BYTES
from subjects.states import State
from tests.conftest import Fleet, rehearsal
from tests.scheduler.conftest import accepted, changed, count, letters, send, until_read

# Jobs that are refused


REFUSED = {
    "not JSON": (b"{oops", "$"),
    "not text": (b"\xff\xfe", "$"),
    "a list": (b"[]", "$"),
    "nothing": (b"", "$"),
    "another id in the payload": (changed(job_id="other"), "$.job_id"),
    "unknown operation": (changed(operation="levitate"), "$.operation"),
    "priority 11": (changed(execution_policy={"priority": 11}), "$.execution_policy.priority"),
    "unknown parameter": (changed(parameters={"speed": 9}), "$.parameters"),
    "parameter of the wrong type": (changed(parameters={"seconds": "long"}), "$.parameters.seconds"),
    "unknown action": (changed(requested_actions=["work", "play"]), "$.requested_actions[1]"),
    "relative image": (changed(image={"path": "disk.img"}), "$.image.path"),
    "version 2": (changed(version="2.0"), "$.version"),
    "too large": (changed(parameters={"mark": "x" * MAX_SPEC_BYTES}), "$"),
    "pool with a dot": (changed(pool="a.b"), "$.pool"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_invalid_job_fails_with_the_path_and_its_original_is_kept(
    bus: Bus, scheduling: Fleet, case: str
) -> None:
    body, path = REFUSED[case]
    await send(bus, "submit", "bad", body)
    [(subject, letter)] = await letters(bus)
    record = await bus.status("bad")
    assert record.result is not None
    assert record.result.error is not None
    told = (record.state, record.result.error.code, record.result.error.details["path"])
    assert told == (State.FAILED, ErrorCode.INVALID_SPEC, path)
    assert (subject, letter.data) == ("invalid-spec.bad", body)
    assert await count(bus, bus.topology.jobs_stream) == 0


async def test_refusal_can_be_watched(bus: Bus, scheduling: Fleet) -> None:
    await send(bus, "submit", "bad", b"{")
    await letters(bus)
    [event] = [event async for event in bus.watch("bad")]
    assert (event.state, event.details) == (State.FAILED, {"code": "INVALID_SPEC"})


async def test_letter_says_who_buried_what_and_when(bus: Bus, scheduling: Fleet) -> None:
    before = dt.datetime.now(dt.UTC)
    await send(bus, "submit", "bad", b"{")
    [(_, letter)] = await letters(bus)
    assert (letter.by, letter.reason) == ("scheduler-1", "invalid-spec")
    assert letter.subject == f"{bus.grammar.root}.commands.tester.submit.bad"
    assert before <= letter.at <= dt.datetime.now(dt.UTC)


# Commands that are none


@pytest.mark.parametrize(
    ("verb", "job_id", "body"),
    [
        ("frobnicate", "j1", b"{}"),
        ("retry", "j1", b"{}"),
        ("retry", "new", b'{"parent":"unknown"}'),
        ("cancel", "j1", b"{oops"),
        ("submit", "a+b", b"{}"),
    ],
    ids=["unknown verb", "retry to nothing", "retry of nothing", "cancel that is no JSON", "illegal id"],
)
async def test_command_that_makes_no_sense_is_buried(
    bus: Bus, scheduling: Fleet, verb: str, job_id: str, body: bytes
) -> None:
    await send(bus, verb, job_id, body)
    [(subject, letter)] = await letters(bus)
    assert (subject, letter.data) == (f"invalid-command.{job_id}", body)
    await until_read(bus)


@pytest.mark.parametrize("job_id", ["x" * 129, "a\u200bb"], ids=["too long", "not printable"])
async def test_command_whose_id_cannot_stand_in_a_subject_is_buried(
    bus: Bus, scheduling: Fleet, job_id: str
) -> None:
    await send(bus, "submit", job_id, b"{}")
    await letters(bus, seconds=1.5)


@pytest.mark.parametrize("tail", ["submit.j1", "tester.submit.j1.more"])
async def test_command_with_too_few_or_many_words_is_not_taken_at_all(
    bus: Bus, scheduling: Fleet, tail: str
) -> None:
    with pytest.raises(NotProvisioned):
        await bus.connection.publish(f"{bus.grammar.root}.commands.{tail}", b"{}")


async def test_retry_of_a_job_that_runs_is_buried(bus: Bus, scheduling: Fleet) -> None:
    await accepted(bus, rehearsal(job_id="queued"))
    await send(bus, "retry", "new", encode(RetryCommand(parent="queued")))
    [(subject, letter)] = await letters(bus)
    assert subject == "invalid-command.new"
    assert "not a finished job" in letter.message
    assert await bus.store.find("new") is None


async def test_retry_to_an_id_that_is_taken_is_buried(bus: Bus, scheduling: Fleet) -> None:
    await accepted(bus, rehearsal(job_id="ended"))
    await bus.cancel("ended")
    await bus.result("ended")
    first = await accepted(bus, rehearsal(job_id="taken", seconds=1))
    await send(bus, "retry", "taken", encode(RetryCommand(parent="ended")))
    [(_, letter)] = await letters(bus)
    assert letter.reason == "duplicate-id"
    assert await bus.status("taken") == first


@pytest.mark.slow
async def test_cancel_of_a_job_that_never_comes_is_buried(bus: Bus, scheduling: Fleet) -> None:
    await send(bus, Verb.CANCEL, "never", encode(CancelCommand()))
    [(subject, _)] = await letters(bus, seconds=30)
    assert subject == "no-such-job.never"
    await until_read(bus)


@pytest.mark.slow
async def test_cancel_may_overtake_its_submit(bus: Bus, scheduling: Fleet) -> None:
    await send(bus, Verb.CANCEL, "j1", encode(CancelCommand(reason="early")))
    await anyio.sleep(0.1)
    await bus.submit(rehearsal(job_id="j1"))
    with anyio.fail_after(10):
        record = await bus.result("j1")
    assert (record.state, record.attempt) == (State.CANCELLED, 0)
