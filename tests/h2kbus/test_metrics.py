"""Metrics: their names stand in the documentation, and nothing that clients send makes more of them."""

import re
from collections.abc import Iterable

import pytest

from h2kbus.fleet import LaneLoad
from h2kbus.metrics import MOST_PHASES, MOST_WORKERS, Metrics
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
    Reconnected,
    Redelivered,
)
from subjects.fleet import WorkerCapabilities
from tests.conftest import REPOSITORY, worker_profile


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["convert", "inspect"])


def ended(operation: str = "convert", phase: str = "convert") -> AttemptEnded:
    return AttemptEnded(
        operation=operation,
        state="COMPLETED",
        seconds=12.0,
        phase_seconds={phase: 10.0},
        read_bytes=1000,
        written_bytes=500,
    )


def load(waiting: int = 3) -> LaneLoad:
    return LaneLoad(
        pool="default", lane="any", priority=5, consumer="c", waiting=waiting, running=1, parked=2,
        oldest_seconds=7.5,
    )  # fmt: skip


def seen(*workers: WorkerCapabilities, loads: Iterable[LaneLoad] = ()) -> FleetSeen:
    return FleetSeen(tuple(loads), workers, {each.worker_id: 4.0 for each in workers})


EVENTS: tuple[Event, ...] = (
    JobMoved("convert", "FAILED", "TOOL_FAILED"),
    ended(),
    LeaseLost("convert"),
    CommandAnswered("submit", "handled"),
    DeadLettered("invalid-spec"),
    Redelivered("jobs"),
    DutyRound(0.2),
    Reconnected(),
    Beaten(worker_profile("worker-1", slots=4)),
    seen(worker_profile("worker-1", slots=4, free_slots=3), loads=[load()]),
)


def lines(metrics: Metrics) -> list[str]:
    return [each for each in metrics.text().decode().splitlines() if not each.startswith("#")]


def names(metrics: Metrics) -> set[str]:
    return set(re.findall(r"^# HELP (\S+)", metrics.text().decode(), re.MULTILINE))


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (EVENTS[0], 'h2kbus_jobs_total{code="TOOL_FAILED",operation="convert",state="FAILED"} 1.0'),
        (EVENTS[1], 'h2kbus_attempt_seconds_bucket{le="15.0",operation="convert",state="COMPLETED"} 1.0'),
        (EVENTS[1], 'h2kbus_phase_seconds_sum{operation="convert",phase="convert"} 10.0'),
        (EVENTS[1], 'h2kbus_read_bytes_total{operation="convert"} 1000.0'),
        (EVENTS[1], 'h2kbus_written_bytes_total{operation="convert"} 500.0'),
        (EVENTS[2], 'h2kbus_lease_losses_total{operation="convert"} 1.0'),
        (EVENTS[3], 'h2kbus_commands_total{outcome="handled",verb="submit"} 1.0'),
        (EVENTS[4], 'h2kbus_dead_letters_total{reason="invalid-spec"} 1.0'),
        (EVENTS[5], 'h2kbus_redeliveries_total{queue="jobs"} 1.0'),
        (EVENTS[6], "h2kbus_duty_round_seconds_sum 0.2"),
        (EVENTS[7], "h2kbus_reconnects_total 1.0"),
        (EVENTS[8], 'h2kbus_worker_slots{worker_id="worker-1"} 4.0'),
        (EVENTS[9], 'h2kbus_lane_waiting_jobs{lane="any",pool="default",priority="5"} 3.0'),
        (EVENTS[9], 'h2kbus_lane_oldest_seconds{lane="any",pool="default",priority="5"} 7.5'),
        (EVENTS[9], 'h2kbus_fleet_workers{state="active"} 1.0'),
        (EVENTS[9], 'h2kbus_fleet_worker_free_slots{pool="default",worker_id="worker-1"} 3.0'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_event_is_counted(metrics: Metrics, event: Event, line: str) -> None:
    metrics(event)
    assert line in lines(metrics)


def test_every_kind_of_event_is_counted_somewhere(metrics: Metrics) -> None:
    for event in EVENTS:
        before = lines(metrics)
        metrics(event)
        assert lines(metrics) != before
    assert {type(each) for each in EVENTS} == set(metrics._handlers)


def test_every_metric_is_documented(metrics: Metrics) -> None:
    for event in EVENTS:
        metrics(event)
    ours = {each for each in names(metrics) if each.startswith("h2kbus_")}
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(h2kbus_\w+)", text, re.MULTILINE))
    assert documented == ours


def test_process_is_measured_too(metrics: Metrics) -> None:
    assert names(metrics) >= {
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_cpu_seconds_total",
    }


def test_operations_that_are_not_known_share_one_series(metrics: Metrics) -> None:
    """The name of an operation is whatever a client sent."""
    for number in range(1000):
        metrics(JobMoved(f"made-up-{number}", "FAILED", "INVALID_SPEC"))
        metrics(ended(f"made-up-{number}"))
    assert len([each for each in lines(metrics) if each.startswith("h2kbus_jobs_total")]) == 1
    assert len([each for each in lines(metrics) if each.startswith("h2kbus_read_bytes_total")]) == 1


def test_verbs_that_are_none_share_one_series(metrics: Metrics) -> None:
    for number in range(100):
        metrics(CommandAnswered(f"verb{number}", "deferred"))
    found = [each for each in lines(metrics) if each.startswith("h2kbus_commands_total")]
    assert found == ['h2kbus_commands_total{outcome="deferred",verb="other"} 100.0']


def test_phases_of_an_operation_are_bounded(metrics: Metrics) -> None:
    for number in range(10 * MOST_PHASES):
        metrics(ended(phase=f"phase{number}"))
    found = [each for each in lines(metrics) if each.startswith("h2kbus_phase_seconds_count")]
    assert len(found) == MOST_PHASES + 1
    assert any('phase="other"' in each for each in found)


def test_workers_with_series_of_their_own_are_bounded(metrics: Metrics) -> None:
    metrics(seen(*(worker_profile(f"worker-{n}") for n in range(2 * MOST_WORKERS))))
    assert (
        len([each for each in lines(metrics) if each.startswith("h2kbus_fleet_worker_slots")]) == MOST_WORKERS
    )
    assert f'h2kbus_fleet_workers{{state="active"}} {2.0 * MOST_WORKERS}' in lines(metrics)


def test_operations_of_plug_ins_are_bounded() -> None:
    metrics = Metrics(f"plugin{number:04}" for number in range(500))
    for number in range(500):
        metrics(JobMoved(f"plugin{number:04}", "QUEUED"))
    assert len([each for each in lines(metrics) if each.startswith("h2kbus_jobs_total")]) == 65


def test_worker_that_is_gone_has_no_series_any_more(metrics: Metrics) -> None:
    metrics(seen(worker_profile("worker-1"), worker_profile("worker-2")))
    metrics(seen(worker_profile("worker-2")))
    assert [each for each in lines(metrics) if "worker-1" in each] == []


def test_lane_without_a_job_has_no_age(metrics: Metrics) -> None:
    empty = LaneLoad(
        pool="default", lane="any", priority=5, consumer="c", waiting=0, running=0, parked=1
    )  # fmt: skip
    metrics(seen(loads=[empty]))
    assert [each for each in lines(metrics) if each.startswith("h2kbus_lane_oldest_seconds")] == []


def test_old_look_at_the_fleet_is_not_shown_as_a_new_one(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics(seen(worker_profile("worker-1"), loads=[load()]))
    then = metrics.fleet._clock()
    monkeypatch.setattr(metrics.fleet, "_clock", lambda: then + 3600)
    found = [each for each in lines(metrics) if each.startswith(("h2kbus_lane", "h2kbus_fleet"))]
    assert [each.split()[0] for each in found] == ["h2kbus_fleet_look_age_seconds"]


def test_heartbeat_grows_older_between_two_looks(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics(seen(worker_profile("worker-1")))
    then = metrics.fleet._clock()
    monkeypatch.setattr(metrics.fleet, "_clock", lambda: then + 10)
    [line] = [e for e in lines(metrics) if e.startswith("h2kbus_fleet_worker_heartbeat_age_seconds")]
    assert float(line.split()[1]) == pytest.approx(14.0, abs=0.5)


def test_two_processes_in_one_do_not_share_their_metrics() -> None:
    first, second = Metrics(["convert"]), Metrics(["convert"])
    first(Reconnected())
    assert "h2kbus_reconnects_total 0.0" in lines(second)
