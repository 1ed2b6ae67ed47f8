"""What a live job needs follows from its record, from durations, and from the server's clock alone."""

import datetime as dt

import pytest

from h2kbus.answers import Stored
from scheduler.duties import Duty, duty_of
from scheduler.live import LiveJob
from subjects.lease import Lease
from subjects.record import JobGlimpse, PolicyGlimpse, SpecGlimpse
from subjects.states import State

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
LEASE = Lease(worker_id="w1", token=1, seconds=60)


def glimpse(state: State, *, lease: Lease | None = None, asked: bool = False, **policy: object) -> JobGlimpse:
    spec = SpecGlimpse(PolicyGlimpse(**policy))  # type: ignore[arg-type]
    return JobGlimpse("j1", state, lease=lease, deadline_exceeded=asked, spec=spec)


def record(revision: int, written: dt.datetime = NOON) -> Stored:
    return Stored("$KV.h2k_jobs.j1", revision, b"", written.isoformat())


def live(job: JobGlimpse, written: dt.datetime = NOON) -> LiveJob:
    return LiveJob(job, record(7, written), 1000.0)


def due(job: JobGlimpse, *, after: float = 0.0, clock: dt.datetime = NOON) -> Duty | None:
    """The duty about a job whose record was seen so many seconds ago."""
    return duty_of(live(job), now=1000.0 + after, clock=clock)


@pytest.mark.parametrize(("after", "duty"), [(0, None), (53.9, None), (54.1, Duty.LOST)])
def test_a_holder_is_lost_when_its_record_has_not_changed_for_most_of_a_lease(
    after: float, duty: Duty | None
) -> None:
    assert due(glimpse(State.RUNNING, lease=LEASE), after=after) is duty


def test_a_holder_that_renews_and_does_not_end_is_overdue_after_its_time_and_a_lease() -> None:
    job = live(glimpse(State.PROGRESSING, lease=LEASE, timeout_seconds=100))
    again = glimpse(State.PROGRESSING, lease=LEASE, timeout_seconds=100)
    job.renew(again, record(8), 1150.0)
    assert duty_of(job, now=1159.0, clock=NOON) is None
    assert duty_of(job, now=1161.0, clock=NOON) is Duty.OVERDUE


def test_another_claim_starts_the_time_anew() -> None:
    job = live(glimpse(State.RUNNING, lease=LEASE, timeout_seconds=100))
    other = Lease(worker_id="w2", token=9, seconds=60)
    again = glimpse(State.RUNNING, lease=other, timeout_seconds=100)
    job.renew(again, record(9), 1150.0)
    assert duty_of(job, now=1200.0, clock=NOON) is None


@pytest.mark.parametrize(
    ("not_before", "clock", "duty"),
    [
        (None, NOON, Duty.ADMIT),
        (NOON, NOON, Duty.ADMIT),
        (NOON - HOUR, NOON, Duty.ADMIT),
        (NOON + HOUR, NOON, None),
    ],
)
def test_a_job_is_admitted_when_the_servers_clock_says_so(
    not_before: dt.datetime | None, clock: dt.datetime, duty: Duty | None
) -> None:
    assert due(glimpse(State.VALIDATED, not_before=not_before), clock=clock) is duty


@pytest.mark.parametrize("state", [State.VALIDATED, State.QUEUED, State.RETRYING])
def test_a_job_that_waits_past_its_deadline_is_ended(state: State) -> None:
    assert due(glimpse(state, deadline=NOON)) is Duty.EXPIRE


def test_a_running_job_is_asked_to_stop_at_its_deadline_once() -> None:
    assert due(glimpse(State.RUNNING, lease=LEASE, deadline=NOON)) is Duty.EXPIRE
    assert due(glimpse(State.RUNNING, lease=LEASE, deadline=NOON, asked=True)) is None


def test_a_deadline_to_come_changes_nothing() -> None:
    assert due(glimpse(State.RUNNING, lease=LEASE, deadline=NOON + HOUR)) is None


@pytest.mark.parametrize(("days", "refreshed"), [(6, False), (8, True)])
def test_a_job_that_waits_for_a_week_is_written_anew_before_its_record_expires(
    days: int, refreshed: bool
) -> None:
    waiting = live(glimpse(State.VALIDATED, not_before=NOON + HOUR), NOON - dt.timedelta(days=days))
    duty = duty_of(waiting, now=1061.0, clock=NOON)
    assert (duty is Duty.REFRESH) == refreshed
