"""The one place that names metrics. Events of `h2kbus.telemetry` go in, Prometheus' text format comes out.

Every name stands in `docs/metrics.md`. How many series there can be is bounded: operations are those that
this process knows, codes and reasons are constants of ours, lanes are limited by the scheduler, and no
job's id is a label.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from h2kbus import __version__
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
from subjects.commands import Verb
from subjects.fleet import WorkerCapabilities

OTHER: Final = "other"
"""The label of an operation that this process does not know, and of whatever is beyond a bound."""
MOST_OPERATIONS: Final = 64
MOST_PHASES: Final = 32
"""Phases are declared by operations; of one operation no more than these get series of their own."""
MOST_WORKERS: Final = 500
"""Of more workers only the sums are given."""
FORGOTTEN_SECONDS: Final = 60.0
"""What was seen of the fleet longer ago than this is not given out any more."""

_SECONDS: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14_400, 43_200)
_ROUND_SECONDS: Final = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60)
_VERBS: Final = frozenset(Verb)
_REASONS: Final = ("invalid-command", "invalid-spec", "duplicate-id", "no-such-job", "invalid-job")
_QUEUES: Final = ("commands", "jobs")


class FleetCollector(Collector):
    """The lanes and workers as they were seen last; those that are gone have no series."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: FleetSeen | None = None
        self._seen_at = 0.0

    def take(self, seen: FleetSeen) -> None:
        self._seen, self._seen_at = seen, self._clock()

    def collect(self) -> Iterator[Metric]:
        """Of a look that is too old only its age is given: a stale queue must not look like a full one."""
        if self._seen is None:
            return
        age = self._clock() - self._seen_at
        yield _gauge("h2kbus_fleet_look_age_seconds", "Age of what is said of the fleet", (), [((), age)])
        if age <= FORGOTTEN_SECONDS:
            yield from _lane_families(self._seen)
            yield from _worker_families(self._seen, age)

    def describe(self) -> Iterable[Metric]:
        """Nothing is known when it is registered."""
        return ()


def _lane_families(seen: FleetSeen) -> Iterator[Metric]:
    labels = ("pool", "lane", "priority")
    keyed = [((each.pool, each.lane, str(each.priority)), each) for each in seen.loads]
    oldest = [(key, each.oldest_seconds) for key, each in keyed if each.oldest_seconds is not None]
    yield _gauge(
        "h2kbus_lane_waiting_jobs", "Jobs that wait in a lane", labels, [(k, e.waiting) for k, e in keyed]
    )
    yield _gauge(
        "h2kbus_lane_running_jobs", "Jobs that workers hold", labels, [(k, e.running) for k, e in keyed]
    )
    yield _gauge(
        "h2kbus_lane_parked_pulls",
        "Workers that wait for a lane's next job",
        labels,
        [(k, e.parked) for k, e in keyed],
    )
    yield _gauge(
        "h2kbus_lane_oldest_seconds", "Age of a lane's oldest job, waiting or running", labels, oldest
    )


def _worker_families(seen: FleetSeen, age: float) -> Iterator[Metric]:
    states = dict.fromkeys(("active", "cordoned", "draining"), 0)
    for each in seen.workers:
        states[_state_of(each)] += 1
    yield _gauge(
        "h2kbus_fleet_workers", "Live workers", ("state",), [((state,), n) for state, n in states.items()]
    )
    keyed = [((each.worker_id, each.pool), each) for each in seen.workers[:MOST_WORKERS]]
    labels = ("worker_id", "pool")
    silent = [(key, age + seen.silent_seconds.get(each.worker_id, 0.0)) for key, each in keyed]
    yield _gauge("h2kbus_fleet_worker_heartbeat_age_seconds", "Time since a worker was heard", labels, silent)
    yield _gauge(
        "h2kbus_fleet_worker_slots",
        "Jobs that a worker takes at once",
        labels,
        [(k, e.max_concurrent_jobs) for k, e in keyed],
    )
    yield _gauge(
        "h2kbus_fleet_worker_free_slots", "Slots without a job", labels, [(k, e.free_slots) for k, e in keyed]
    )


def _state_of(worker: WorkerCapabilities) -> str:
    if worker.draining:
        return "draining"
    return "cordoned" if worker.cordoned else "active"


def _gauge(
    name: str, words: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


class Metrics:
    """All metrics of one process; an instance is an observer. `operations` are those it knows by name."""

    def __init__(self, operations: Iterable[str]) -> None:
        # They would double the number of series, and Prometheus reads nothing of them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.fleet = FleetCollector()
        self._operations = frozenset(sorted(operations)[:MOST_OPERATIONS])
        self._phases: dict[str, set[str]] = {}
        self._define_counters()
        self._define_times()
        self._define_worker()
        self._begin_at_zero()
        for collector in (self.fleet, ProcessCollector(registry=None)):
            self.registry.register(collector)
        GCCollector(registry=self.registry)
        self._handlers: dict[type[Any], Callable[[Any], object]] = {
            JobMoved: self._job_moved,
            AttemptEnded: self._attempt_ended,
            LeaseLost: lambda event: self._lease_losses.labels(self._known(event.operation)).inc(),
            CommandAnswered: self._command_answered,
            DeadLettered: lambda event: self._dead_letters.labels(event.reason).inc(),
            Redelivered: lambda event: self._redeliveries.labels(event.queue).inc(),
            DutyRound: lambda event: self._duty_round.observe(event.seconds),
            Reconnected: lambda _: self._reconnects.inc(),
            Beaten: self._beaten,
            FleetSeen: self.fleet.take,
        }

    def __call__(self, event: Event) -> None:
        """Count one event."""
        self._handlers[type(event)](event)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _define_counters(self) -> None:
        registry = self.registry
        Gauge("h2kbus_info", "Version of this process", ("version",), registry=registry).labels(
            __version__
        ).set(1)
        self._jobs = Counter(
            "h2kbus_jobs",
            "Moves of jobs to a state, by who wrote them",
            ("operation", "state", "code"),
            registry=registry,
        )
        self._commands = Counter(
            "h2kbus_commands",
            "Deliveries of commands that were answered",
            ("verb", "outcome"),
            registry=registry,
        )
        self._dead_letters = Counter(
            "h2kbus_dead_letters", "Messages that were kept aside", ("reason",), registry=registry
        )
        self._redeliveries = Counter(
            "h2kbus_redeliveries", "Messages that came again", ("queue",), registry=registry
        )
        self._lease_losses = Counter(
            "h2kbus_lease_losses", "Attempts that lost their job", ("operation",), registry=registry
        )
        self._reconnects = Counter("h2kbus_reconnects", "Connections that came back", registry=registry)

    def _define_times(self) -> None:
        registry = self.registry
        self._attempts = Histogram(
            "h2kbus_attempt_seconds",
            "Duration of attempts, by the state that they led to",
            ("operation", "state"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._phase_times = Histogram(
            "h2kbus_phase_seconds",
            "Duration of phases",
            ("operation", "phase"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._read = Counter("h2kbus_read_bytes", "Bytes that tools read", ("operation",), registry=registry)
        self._written = Counter(
            "h2kbus_written_bytes", "Bytes that tools wrote", ("operation",), registry=registry
        )
        self._duty_round = Histogram(
            "h2kbus_duty_round_seconds",
            "Duration of a scheduler's rounds",
            buckets=_ROUND_SECONDS,
            registry=registry,
        )

    def _define_worker(self) -> None:
        labels, registry = ("worker_id",), self.registry
        self._slots = Gauge(
            "h2kbus_worker_slots", "Jobs that this worker takes at once", labels, registry=registry
        )
        self._free = Gauge(
            "h2kbus_worker_free_slots", "Its free slots at its last heartbeat", labels, registry=registry
        )
        self._beat = Gauge(
            "h2kbus_worker_heartbeat_timestamp_seconds",
            "When the bus took its last heartbeat",
            labels,
            registry=registry,
        )

    def _begin_at_zero(self) -> None:
        """A counter that begins at 1 has not grown, as Prometheus sees it: what alerts ask for is there."""
        for reason in _REASONS:
            self._dead_letters.labels(reason)
        for queue in _QUEUES:
            self._redeliveries.labels(queue)
        for operation in self._operations:
            self._lease_losses.labels(operation)

    def _known(self, operation: str) -> str:
        return operation if operation in self._operations else OTHER

    def _known_phase(self, operation: str, phase: str) -> str:
        known = self._phases.setdefault(operation, set())
        if len(known) < MOST_PHASES:
            known.add(phase)
        return phase if phase in known else OTHER

    def _job_moved(self, event: JobMoved) -> None:
        self._jobs.labels(self._known(event.operation), event.state, event.code).inc()

    def _attempt_ended(self, event: AttemptEnded) -> None:
        operation = self._known(event.operation)
        self._attempts.labels(operation, event.state).observe(event.seconds)
        self._read.labels(operation).inc(event.read_bytes)
        self._written.labels(operation).inc(event.written_bytes)
        for phase, seconds in event.phase_seconds.items():
            self._phase_times.labels(operation, self._known_phase(operation, phase)).observe(seconds)

    def _command_answered(self, event: CommandAnswered) -> None:
        verb = event.verb if event.verb in _VERBS else OTHER
        self._commands.labels(verb, event.outcome).inc()

    def _beaten(self, event: Beaten) -> None:
        worker = event.worker
        self._slots.labels(worker.worker_id).set(worker.max_concurrent_jobs)
        self._free.labels(worker.worker_id).set(worker.free_slots)
        self._beat.labels(worker.worker_id).set_to_current_time()
