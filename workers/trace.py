"""The steps of an attempt as spans: claim, phases with the tools that ran in them, settlement.

Phases and tools are taken from what the attempt has measured of itself, once it is over.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from h2kbus.telemetry import UNTRACED, Span, Tracer, operation_of
from workers.execute import Outcome
from workers.lease import HeldLease
from workers.process import ToolRun
from workers.progress import PhaseSpan


def attempt_span(tracer: Tracer, lease: HeldLease, began_ns: int) -> AbstractContextManager[Span]:
    """The span of one attempt, which began when its message was taken up, and inside it the claim's."""
    if tracer is UNTRACED:
        return tracer.span("attempt", lease.entry.record.traceparent)
    return _attempt_span(tracer, lease, began_ns)


@contextlib.contextmanager
def _attempt_span(tracer: Tracer, lease: HeldLease, began_ns: int) -> Iterator[Span]:
    record = lease.entry.record
    with tracer.span(
        "attempt",
        record.traceparent,
        began_ns=began_ns,
        job_id=record.job_id,
        operation=operation_of(record),
        attempt=record.attempt,
        worker_id=record.worker_id or "",
        pool=record.pool,
        lane=record.lane,
    ) as span:
        span.child("claim", began_ns, time.time_ns())
        yield span


@contextlib.contextmanager
def settle_span(span: Span) -> Iterator[None]:
    """The settlement, inside its attempt."""
    began = time.time_ns()
    try:
        yield
    finally:
        span.child("settle", began, time.time_ns())


def add_steps(span: Span, lease: HeldLease, outcome: Outcome) -> None:
    """What the attempt did, and whether it failed: the phase that it failed in says so too."""
    failure = outcome.error.code if outcome.error else ""
    phases = lease.report.phases if lease.report else []
    runs = lease.tools.runs if lease.tools else []
    for number, phase in enumerate(phases, 1):
        ended_in_it = failure if number == len(phases) else ""
        step = span.child(f"phase {phase.name}", phase.began_ns, phase.ended_ns, failure=ended_in_it)
        for run in runs:
            if _is_within(run, phase):
                _add_run(step, run, failure)
    for run in runs:
        if not any(_is_within(run, phase) for phase in phases):
            _add_run(span, run, failure)
    if failure:
        span.fail(failure)


def _is_within(run: ToolRun, phase: PhaseSpan) -> bool:
    return phase.began_ns <= run.began_ns < phase.ended_ns


def _add_run(step: Span, run: ToolRun, failure: str) -> None:
    """A tool by its name: its arguments may be paths, and the job's log has them.

    Some tools say with their status what they found, so that of a good attempt none has failed.
    """
    failed = f"status {run.status}" if failure and run.status != 0 else ""
    step.child(f"tool {run.name}", run.began_ns, run.ended_ns, failure=failed, status=run.status)
