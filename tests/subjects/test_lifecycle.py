"""However a job goes, its record keeps to the table and its audit trail has no gap."""

import datetime as dt
from collections.abc import Callable, Iterator
from itertools import count, pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subjects import lifecycle
from subjects.codec import convert, decode, encode
from subjects.codes import ErrorCode, IllegalTransition
from subjects.record import JobRecord, ProgressSummary
from subjects.result import JobError, JobResult
from subjects.spec import JobSpec
from subjects.states import TERMINAL, TRANSITIONS, State

START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ERROR = JobError(code=ErrorCode.TOOL_FAILED, message="qemu-img gave up")
Move = Callable[[JobRecord, dt.datetime, int], JobRecord]


def spec(priority: int = 5, **changes: object) -> JobSpec:
    return convert(
        JobSpec,
        {
            "operation": "inspect",
            "image": {"path": "/a.raw"},
            "artifacts": {"output_path": "/out"},
            "audit": {"requested_by": "ann"},
            "execution_policy": {"priority": priority},
            **changes,
        },
    )


def new_record() -> JobRecord:
    return lifecycle.created(spec(3), job_id="j", submitter="ann", lane="qemu-img", now=START, by="s1")


def claim(record: JobRecord, now: dt.datetime, revision: int) -> JobRecord:
    return lifecycle.claimed(record, worker_id=f"w{revision}", revision=revision, now=now)


def renew(record: JobRecord, now: dt.datetime, revision: int) -> JobRecord:
    summary = ProgressSummary(phase="convert", progress_percent=revision % 101)
    return lifecycle.renewed(record, summary, now=now)


def complete(record: JobRecord, now: dt.datetime, _: int) -> JobRecord:
    result = JobResult(job_id="j", status=State.COMPLETED, completed_at=now, worker_id=record.worker_id)
    return lifecycle.completed(record, result, now=now)


def fail(record: JobRecord, now: dt.datetime, _: int) -> JobRecord:
    return lifecycle.failed(record, ERROR, now=now, by="w1")


def cancel(record: JobRecord, now: dt.datetime, _: int) -> JobRecord:
    return lifecycle.cancelled(record, ERROR, now=now, by="w1")


def retry(record: JobRecord, now: dt.datetime, _: int) -> JobRecord:
    return lifecycle.retrying(record, ERROR, now=now, by="w1", next_attempt_at=now)


def hand_back(record: JobRecord, now: dt.datetime, _: int) -> JobRecord:
    return lifecycle.handed_back(record, ERROR, now=now, by="w1")


MOVES: dict[str, Move] = {
    "claim": claim,
    "renew": renew,
    "beat": lambda record, now, _: lifecycle.renewed(record, None, now=now),
    "complete": complete,
    "fail": fail,
    "cancel": cancel,
    "retry": retry,
    "hand back": hand_back,
    "request cancel": lambda record, now, _: lifecycle.cancel_requested(record, now=now),
    "pending": lambda record, now, _: lifecycle.pending(record, "no worker", now=now),
}
# Endings are rare among the steps, so that most walks are long.
STEPS = st.lists(
    st.sampled_from([*MOVES, *["claim", "renew", "beat", "retry", "hand back"] * 3]), max_size=25
)


def histories(steps: list[str]) -> Iterator[tuple[str, JobRecord, JobRecord]]:
    """Every step that the table allowed, with the record before and after it."""
    record, revisions = new_record(), count(2)
    for step in steps:
        revision = next(revisions)
        try:
            after = MOVES[step](record, START + dt.timedelta(seconds=revision), revision)
        except IllegalTransition:
            continue
        yield step, record, after
        record = after


@given(STEPS)
def test_the_audit_trail_is_continuous_and_legal(steps: list[str]) -> None:
    for _, before, after in histories(steps):
        trail = after.transitions
        assert trail[: len(before.transitions)] == before.transitions
        assert trail[0].before is None
        assert all(later.before is earlier.to for earlier, later in pairwise(trail))
        assert all(line.to in TRANSITIONS[line.before] for line in trail if line.before is not None)
        assert trail[-1].to is after.state
        assert all(earlier.at <= later.at for earlier, later in pairwise(trail))


@given(STEPS)
def test_exactly_the_finished_jobs_have_a_result(steps: list[str]) -> None:
    for _, _, after in histories(steps):
        assert (after.result is not None) == (after.state in TERMINAL)
        assert after.result is None or after.result.status is after.state


@given(STEPS)
def test_exactly_the_running_jobs_have_a_lease(steps: list[str]) -> None:
    for _, _, after in histories(steps):
        assert (after.lease is not None) == after.state.leased
        assert after.lease is None or after.lease.worker_id == after.worker_id


@given(STEPS)
def test_a_claim_counts_an_attempt_and_only_a_hand_back_returns_it(steps: list[str]) -> None:
    change = {"claim": 1, "hand back": -1}
    for step, before, after in histories(steps):
        assert after.attempt == before.attempt + change.get(step, 0)
        assert after.attempt >= 0


@given(STEPS)
def test_every_claim_has_a_higher_token_than_the_last(steps: list[str]) -> None:
    tokens = [after.lease.token for step, _, after in histories(steps) if step == "claim" and after.lease]
    assert all(earlier < later for earlier, later in pairwise(tokens))


@given(STEPS)
def test_a_finished_job_never_changes_its_state(steps: list[str]) -> None:
    for _, before, after in histories(steps):
        assert not before.state.terminal or after.transitions == before.transitions


@settings(max_examples=30)
@given(STEPS)
def test_every_record_survives_the_wire(steps: list[str]) -> None:
    for _, _, after in histories(steps):
        assert decode(JobRecord, encode(after)) == after


def test_a_valid_job_is_queued_in_one_write() -> None:
    record = new_record()
    assert [line.to for line in record.transitions] == [State.CREATED, State.VALIDATED, State.QUEUED]
    assert (record.priority, record.pool, record.lane, record.attempt) == (3, "default", "qemu-img", 0)


def test_an_invalid_job_has_failed_in_one_write() -> None:
    record = lifecycle.refused(None, job_id="j", submitter="ann", error=ERROR, now=START, by="s1")
    assert [line.to for line in record.transitions] == [State.CREATED, State.FAILED]
    assert record.result is not None
    assert record.result.error == ERROR


def test_a_takeover_shows_the_loss_and_its_reason() -> None:
    first = claim(new_record(), START, 2)
    second = lifecycle.claimed(
        first, worker_id="w9", revision=7, now=START, reason="WORKER_LOST: w2 went silent"
    )
    lost = second.transitions[len(first.transitions)]
    assert (lost.to, lost.by, lost.reason) == (State.RETRYING, "w9", "WORKER_LOST: w2 went silent")
    assert second.state is State.RUNNING


def test_the_failure_of_every_attempt_is_kept() -> None:
    record = retry(claim(new_record(), START, 2), START, 3)
    record = fail(claim(record, START, 4), START, 5)
    assert record.errors == (ERROR, ERROR)
    assert record.result is not None
    assert record.result.retry_attempt == 1


def test_a_hand_back_is_no_failure() -> None:
    assert hand_back(claim(new_record(), START, 2), START, 3).errors == ()


def test_a_waiting_job_says_what_it_waits_for() -> None:
    record = retry(claim(new_record(), START, 2), START, 3)
    assert record.pending_reason == "waits for attempt 2 after TOOL_FAILED"
    assert claim(record, START, 4).pending_reason is None


@pytest.mark.parametrize("ending", [complete, fail, cancel])
@pytest.mark.parametrize("move", [complete, fail, cancel, retry, hand_back])
def test_nothing_follows_the_end(ending: Move, move: Move) -> None:
    ended = ending(claim(new_record(), START, 2), START, 3)
    with pytest.raises(IllegalTransition, match=f"from {ended.state} to"):
        move(ended, START, 4)


def test_a_queued_job_cannot_complete() -> None:
    with pytest.raises(IllegalTransition, match="from QUEUED to COMPLETED"):
        complete(new_record(), START, 2)


def test_the_same_job_is_told_by_its_content() -> None:
    record = new_record()
    later = spec(3, job_id="j", created_at="2026-04-01T00:00:00Z")
    assert lifecycle.same_job(record, later)
    assert not lifecycle.same_job(record, spec(4, job_id="j"))


def test_a_claim_of_a_finished_job_names_both_states() -> None:
    ended = fail(claim(new_record(), START, 2), START, 3)
    with pytest.raises(IllegalTransition, match="from FAILED to"):
        claim(ended, START, 4)


def test_a_job_handed_back_says_the_right_attempt() -> None:
    waiting = hand_back(claim(new_record(), START, 2), START, 3)
    assert claim(waiting, START, 4).attempt == 1
    assert "attempt 1 " in (waiting.pending_reason or "")


def test_the_loss_of_a_worker_is_kept_among_the_failures() -> None:
    lost = claim(new_record(), START, 2)
    taken = lifecycle.claimed(
        lost, worker_id="w9", revision=7, now=START, reason="WORKER_LOST: w2 went silent"
    )
    assert [error.code for error in taken.errors] == [ErrorCode.WORKER_LOST]
    assert taken.errors[0].message == "w2 went silent"


@pytest.mark.parametrize("step", [retry, hand_back, claim])
def test_a_new_attempt_starts_without_the_last_ones_progress(step: Move) -> None:
    record = renew(claim(new_record(), START, 2), START, 66)
    assert step(record, START, 67).progress is None


@pytest.mark.parametrize("state", [State.CREATED, State.VALIDATED])
def test_a_job_that_is_not_queued_cannot_be_claimed(state: State) -> None:
    early = msgspec.structs.replace(new_record(), state=state)
    with pytest.raises(IllegalTransition, match=f"from {state} to ASSIGNED"):
        claim(early, START, 2)


@pytest.mark.parametrize("status", [State.FAILED, State.CANCELLED])
def test_a_job_cannot_complete_with_a_result_that_says_otherwise(status: State) -> None:
    result = JobResult(job_id="j", status=status, completed_at=START)
    with pytest.raises(IllegalTransition, match=f"says {status}"):
        lifecycle.completed(claim(new_record(), START, 2), result, now=START)
