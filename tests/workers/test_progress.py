"""How far an attempt is, by the weights of its phases."""

from subjects.operations import Phase
from workers.progress import ProgressReport

PHASES = (Phase("look", 10), Phase("work", 70), Phase("boot", 20))


def percent(report: ProgressReport) -> float:
    assert report.latest is not None
    return report.latest.percent


def test_phase_begins_where_those_before_it_end() -> None:
    report = ProgressReport(PHASES)
    report.enter("look")
    assert percent(report) == 0
    report.enter("work")
    assert percent(report) == 10
    report.advance(0.5)
    assert percent(report) == 45
    report.enter("boot")
    assert percent(report) == 80


def test_phase_that_is_left_out_counts_as_done() -> None:
    report = ProgressReport(PHASES)
    report.enter("look")
    report.enter("boot")
    assert percent(report) == 80


def test_phase_that_is_entered_again_is_not_counted_twice() -> None:
    report = ProgressReport(PHASES)
    for _ in range(3):
        report.enter("work")
        report.advance(1.0)
    report.enter("boot")
    assert percent(report) == 80


def test_percentage_never_falls() -> None:
    report = ProgressReport(PHASES)
    report.enter("work")
    report.advance(0.9)
    report.advance(0.1)
    assert percent(report) == 73
