"""What a live job needs follows from its record, from durations, and from the server's clock alone."""

import datetime as dt

import pytest

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


def due(job: JobGlimpse, *, after: float = 0.0, clock: dt.datetime | None = NOON) -> Duty | None:
    """The duty about a job whose record was seen so many seconds ago."""
    return duty_of(LiveJob(job, 7, 1000.0), now=1000.0 + after, clock=clock, lease_seconds=60)


@pytest.mark.parametrize(("after", "duty"), [(0, None), (53.9, None), (54.1, Duty.LOST)])
def test_a_holder_is_lost_when_its_record_has_not_changed_for_most_of_a_lease(
    after: float, duty: Duty | None
) -> None:
    assert due(glimpse(State.RUNNING, lease=LEASE), after=after) is duty


def test_a_holder_that_renews_and_does_not_end_is_overdue_after_its_time_and_a_lease() -> None:
    job = LiveJob(glimpse(State.PROGRESSING, lease=LEASE, timeout_seconds=100), 7, 1000.0)
    job.renew(glimpse(State.PROGRESSING, lease=LEASE, timeout_seconds=100), 8, 1150.0)
    assert duty_of(job, now=1159.0, clock=None, lease_seconds=60) is None
    assert duty_of(job, now=1161.0, clock=None, lease_seconds=60) is Duty.OVERDUE


def test_another_claim_starts_the_time_anew() -> None:
    job = LiveJob(glimpse(State.RUNNING, lease=LEASE, timeout_seconds=100), 7, 1000.0)
    other = Lease(worker_id="w2", token=9, seconds=60)
    job.renew(glimpse(State.RUNNING, lease=other, timeout_seconds=100), 9, 1150.0)
    assert duty_of(job, now=1200.0, clock=None, lease_seconds=60) is None


@pytest.mark.parametrize("state", [State.QUEUED, State.RETRYING])
@pytest.mark.parametrize(("after", "duty"), [(59, None), (61, Duty.DELIVER)])
def test_a_job_that_waits_for_long_is_looked_for_in_its_lane(
    state: State, after: float, duty: Duty | None
) -> None:
    assert due(glimpse(state), after=after) is duty


@pytest.mark.parametrize(
    ("not_before", "clock", "duty"),
    [
        (None, None, Duty.ADMIT),
        (NOON, NOON, Duty.ADMIT),
        (NOON - HOUR, NOON, Duty.ADMIT),
        (NOON + HOUR, NOON, None),
        (NOON - HOUR, None, None),
    ],
)
def test_a_job_is_admitted_when_the_servers_clock_says_so(
    not_before: dt.datetime | None, clock: dt.datetime | None, duty: Duty | None
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
