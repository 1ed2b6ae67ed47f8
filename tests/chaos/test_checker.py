"""A checker that cannot find anything proves nothing: every promise is broken here once, by hand."""

import datetime as dt
import hashlib
from typing import Any

import msgspec
import pytest

from subjects import lifecycle
from subjects.codes import ErrorCode
from subjects.events import ProgressEvent
from subjects.record import JobRecord, Transition
from subjects.result import JobError, JobResult
from subjects.spec import ArtifactPolicy, Audit, ExecutionPolicy, ImageSpec, JobSpec
from subjects.states import State
from tests.chaos.checker import Evidence, check
from tests.chaos.ledger import Line

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
CONTENT = b"j1 7 made up"
SPEC = JobSpec(
    operation="chaos",
    job_id="j1",
    image=ImageSpec(path="/nowhere"),
    artifacts=ArtifactPolicy(output_path="/out"),
    audit=Audit(requested_by="chaos"),
    parameters={"name": "j1.out"},
)
QUEUED = lifecycle.created(SPEC, job_id="j1", submitter="chaos", lane="any", now=NOW, by="s1")
RUNNING = lifecycle.claimed(QUEUED, worker_id="w1", revision=7, now=NOW)
RESULT = JobResult(
    job_id="j1",
    status=State.COMPLETED,
    completed_at=NOW,
    worker_id="w1",
    summary={"fence": 7, "sha256": hashlib.sha256(CONTENT).hexdigest()},
)
COMPLETED = lifecycle.completed(RUNNING, RESULT, now=NOW)
FAILED = lifecycle.failed(RUNNING, JobError(code=ErrorCode.TOOL_FAILED, message="x"), now=NOW, by="w1")


def line(event: str = "start", token: int = 7) -> Line:
    return Line(event, "j1", token, 1, 100, 1.0)


def event(seq: int, state: State, percent: float = 0.0) -> ProgressEvent:
    return ProgressEvent(
        job_id="j1", seq=seq, timestamp=NOW, state=state, phase="p", progress_percent=percent,
        attempt=1, worker_id="w1",
    )  # fmt: skip


EVENTS = [event(1, State.QUEUED), event(2, State.RUNNING), event(3, State.COMPLETED, 100)]
SOUND = Evidence(
    accepted={"j1": SPEC},
    records={"j1": COMPLETED},
    events={"j1": EVENTS},
    ledger=[line(), line("end")],
    files={"/out/j1.out": CONTENT},
)


def promises(**changes: Any) -> list[str]:
    return [each.promise for each in check(msgspec.structs.replace(SOUND, **changes))]


def with_policy(**policy: Any) -> dict[str, JobSpec]:
    return {"j1": msgspec.structs.replace(SPEC, execution_policy=ExecutionPolicy(**policy))}


def with_trail(*more: Transition) -> dict[str, JobRecord]:
    changed = (*COMPLETED.transitions, *more)
    return {"j1": msgspec.structs.replace(COMPLETED, transitions=changed)}


def test_a_sound_history_has_no_violation() -> None:
    assert promises() == []


def test_an_accepted_job_without_a_record_is_lost() -> None:
    assert promises(records={}) == ["no accepted job is lost"]


def test_a_job_that_never_ends_is_found() -> None:
    assert "every job ends" in promises(records={"j1": RUNNING}, files={})


def test_a_move_outside_the_table_is_found() -> None:
    moved = Transition(State.COMPLETED, State.RUNNING, NOW, "w2")
    assert promises(records=with_trail(moved)) == ["every move is in the table"]


def test_a_gap_in_the_trail_is_found() -> None:
    gap = Transition(State.QUEUED, State.ASSIGNED, NOW, "w2")
    assert promises(records=with_trail(gap)) == ["every move is in the table"]


def test_a_second_end_is_found() -> None:
    again = Transition(State.PROGRESSING, State.COMPLETED, NOW, "w2")
    assert "one terminal state" in promises(records=with_trail(again))


def test_a_token_that_executes_twice_is_found() -> None:
    found = promises(ledger=[line(), line()], accepted=with_policy(retry_count=3))
    assert found == ["a claim executes once"]


def test_a_stale_execution_that_begins_late_is_found() -> None:
    found = promises(ledger=[line(token=9), line()], accepted=with_policy(retry_count=3))
    assert found == ["tokens grow"]


def test_more_executions_than_attempts_are_found() -> None:
    assert promises(ledger=[line(token=5), line()]) == ["executions are granted"]


def test_an_execution_that_was_handed_back_does_not_count() -> None:
    drained = Transition(State.RUNNING, State.RETRYING, NOW, "w1", "DRAINED: the worker was stopped")
    again = Transition(State.RETRYING, State.QUEUED, NOW, "w1")
    rest = COMPLETED.transitions
    record = msgspec.structs.replace(COMPLETED, transitions=(*rest[:5], drained, again, *rest[3:]))
    assert promises(ledger=[line(token=5), line()], records={"j1": record}) == []


def test_a_second_start_of_what_must_not_start_twice_is_found() -> None:
    accepted = with_policy(idempotent=False, retry_count=3)
    assert promises(ledger=[line(token=5), line()], accepted=accepted) == [
        "what is not idempotent starts once"
    ]


def test_completion_without_any_execution_is_found() -> None:
    assert "what completes has run" in promises(ledger=[])


@pytest.mark.parametrize("events", [[], EVENTS[:2], [*EVENTS[:2], event(3, State.FAILED)]])
def test_an_end_that_was_not_told_is_found(events: list[ProgressEvent]) -> None:
    assert promises(events={"j1": events}) == ["the last event tells the end"]


def test_stale_events_are_ignored_as_readers_do() -> None:
    assert promises(events={"j1": [*EVENTS, event(2, State.PROGRESSING)]}) == []


def test_progress_that_falls_is_found() -> None:
    falling = [event(4, State.PROGRESSING, 50), event(5, State.PROGRESSING, 40), event(6, State.COMPLETED)]
    assert promises(events={"j1": falling}) == ["progress never falls"]


def test_an_event_after_the_end_is_found() -> None:
    late = [*EVENTS, event(4, State.RUNNING), event(5, State.COMPLETED, 100)]
    assert "nothing follows the end" in promises(events={"j1": late})


def test_a_missing_output_is_found() -> None:
    assert promises(files={}) == ["what completed has its output"]


def test_the_output_of_another_job_is_found() -> None:
    assert promises(files={"/out/j1.out": b"j2 7 x"}) == ["what completed has its output"]


def test_an_output_that_differs_from_its_checksum_is_found() -> None:
    assert promises(files={"/out/j1.out": b"j1 8 of a stale attempt"}) == ["outputs are those recorded"]


def test_an_output_whose_token_nobody_had_is_found() -> None:
    assert promises(ledger=[line(token=6)]) == ["outputs are those recorded"]


def test_an_output_of_a_job_that_failed_is_found() -> None:
    told = [*EVENTS[:2], event(3, State.FAILED)]
    assert promises(records={"j1": FAILED}, events={"j1": told}) == ["no output without completion"]


def limited(second_starts: float) -> list[str]:
    """Two jobs under a limit of one: the first runs from 1 to 2, the second for a second from its start."""
    spec = msgspec.structs.replace(SPEC, limit={"host/a": 1})
    other = msgspec.structs.replace(
        COMPLETED, job_id="j2", result=msgspec.structs.replace(RESULT, job_id="j2")
    )
    ran = [("start", "j1", 1.0), ("end", "j1", 2.0)]
    ran += [("start", "j2", second_starts), ("end", "j2", second_starts + 1)]
    lines = [Line(name, job_id, 7, 1, 100, at) for name, job_id, at in ran]
    return promises(accepted={"j1": spec, "j2": spec}, records={"j1": COMPLETED, "j2": other}, ledger=lines)


def test_more_jobs_at_once_than_a_limit_allows_are_found() -> None:
    assert "named limits hold" in limited(1.5)


def test_jobs_one_after_the_other_keep_within_a_limit() -> None:
    assert "named limits hold" not in limited(2.0)


def test_what_is_left_over_is_found() -> None:
    assert promises(left_over=["scratch /out/.h2kbus-j1-7"]) == ["nothing is left over"]
