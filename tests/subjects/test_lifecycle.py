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
LOST = JobError(code=ErrorCode.WORKER_LOST, message="w2 went silent")
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


def take_back(record: JobRecord, now: dt.datetime, _: int) -> JobRecord:
    return lifecycle.taken_back(record, LOST, now=now, by="s1")


MOVES: dict[str, Move] = {
    "claim": claim,
    "renew": renew,
    "beat": lambda record, now, _: lifecycle.renewed(record, None, now=now),
    "complete": complete,
    "fail": fail,
    "cancel": cancel,
    "retry": retry,
    "hand back": hand_back,
    "take back": take_back,
    "publish": lambda record, now, _: lifecycle.publishing(record),
    "request cancel": lambda record, now, _: lifecycle.stop_requested(record, ErrorCode.CANCELLED, now=now),
    "pass deadline": lambda record, now, _: lifecycle.stop_requested(
        record, ErrorCode.DEADLINE_EXCEEDED, now=now
    ),
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


def with_policy(**policy: object) -> JobRecord:
    """A job with this policy, held by a worker."""
    wanted = spec(execution_policy=policy)
    record = lifecycle.created(wanted, job_id="j", submitter="ann", lane="any", now=START, by="s1")
    return claim(record, START, 2)


def test_a_job_taken_back_shows_the_loss_and_its_reason() -> None:
    before = with_policy(retry_count=1)
    after = take_back(before, START, 3)
    lost = after.transitions[len(before.transitions)]
    assert (lost.to, lost.by, lost.reason) == (State.RETRYING, "s1", "WORKER_LOST: w2 went silent")
    assert (after.errors, after.lease, after.worker_id) == ((LOST,), None, None)


def test_a_job_without_attempts_left_fails_when_its_worker_is_lost() -> None:
    after = take_back(with_policy(retry_count=0), START, 3)
    assert after.state is State.FAILED
    assert after.result is not None
    assert after.result.error == LOST


def test_a_job_that_must_not_start_twice_fails_when_its_worker_is_lost() -> None:
    assert take_back(with_policy(retry_count=5, idempotent=False), START, 3).state is State.FAILED


def test_a_job_that_may_have_published_is_given_out_again_to_find_out() -> None:
    held = lifecycle.publishing(with_policy(retry_count=0, idempotent=False))
    after = take_back(held, START, 3)
    assert (after.state, after.publishing) == (State.RETRYING, True)
    assert not lifecycle.is_granted(claim(after, START, 4))


@pytest.mark.parametrize(
    ("code", "end"), [(ErrorCode.CANCELLED, State.CANCELLED), (ErrorCode.DEADLINE_EXCEEDED, State.FAILED)]
)
def test_a_lost_job_that_was_asked_to_stop_has_stopped(code: ErrorCode, end: State) -> None:
    asked = lifecycle.stop_requested(with_policy(retry_count=3), code, now=START)
    after = take_back(asked, START, 3)
    assert after.state is end
    assert after.result is not None
    assert after.result.error is not None
    assert after.result.error.code is code


@pytest.mark.parametrize(
    ("policy", "granted"),
    [
        ({"retry_count": 0}, [True, False]),
        ({"retry_count": 2}, [True, True, True, False]),
        ({"retry_count": 2, "idempotent": False}, [True, False, False]),
    ],
)
def test_attempts_are_granted_by_the_policy(policy: dict[str, object], granted: list[bool]) -> None:
    first = with_policy(**policy)
    attempts = [msgspec.structs.replace(first, attempt=number + 1) for number in range(len(granted))]
    assert [lifecycle.is_granted(each) for each in attempts] == granted


def test_a_job_that_waits_is_not_queued_and_says_why() -> None:
    record = lifecycle.created(
        spec(), job_id="j", submitter="ann", lane="any", now=START, by="s1", waits="waits for job a"
    )
    assert (record.state, record.pending_reason) == (State.VALIDATED, "waits for job a")
    admitted = lifecycle.queued(record, now=START, by="s2")
    assert (admitted.state, admitted.pending_reason) == (State.QUEUED, None)


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


@pytest.mark.parametrize("step", [retry, hand_back])
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
