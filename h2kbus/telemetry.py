"""What schedulers, workers and clients tell of themselves: the two ports that metrics and tracing fill.

Events are counted by an observer and spans are kept by a tracer. Nothing here knows Prometheus or
OpenTelemetry: `h2kbus.metrics` and `h2kbus.tracing` do, and only the command line loads them.
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Final, Literal, Protocol

import msgspec

from h2kbus.fleet import LaneLoad
from subjects.fleet import WorkerCapabilities
from subjects.record import JobRecord

TRACEPARENT: Final = "traceparent"
"""The header of W3C Trace Context that a command carries."""

_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class JobMoved(msgspec.Struct, frozen=True):
    """A record was written with a state that the job did not have before. `code` is why it ended or waits."""

    operation: str
    state: str
    code: str = ""


class AttemptEnded(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt was settled. Times are wall seconds; bytes are what its tools read and wrote."""

    operation: str
    state: str
    seconds: float
    phase_seconds: Mapping[str, float]
    read_bytes: int
    written_bytes: int


class LeaseLost(msgspec.Struct, frozen=True):
    """An attempt's outcome was not written, because somebody else has the job."""

    operation: str


class CommandAnswered(msgspec.Struct, frozen=True):
    """A scheduler is done with one delivery of a command.

    A deferred one comes again; a refused one was more than its submitter's quota allows.
    """

    verb: str
    outcome: Literal["handled", "deferred", "refused"]


class DeadLettered(msgspec.Struct, frozen=True):
    """A message that nobody could handle was kept aside."""

    reason: str


class Redelivered(msgspec.Struct, frozen=True):
    """A message came for another time."""

    queue: Literal["commands", "jobs"]


class DutyRound(msgspec.Struct, frozen=True):
    """A scheduler has seen to its live jobs once."""

    seconds: float


class Reconnected(msgspec.Struct, frozen=True):
    """The connection to the bus had been lost, and is back."""


class Beaten(msgspec.Struct, frozen=True):
    """A worker's heartbeat has reached the bus."""

    worker: WorkerCapabilities


class FleetSeen(msgspec.Struct, frozen=True):
    """A scheduler has looked at all lanes and workers. `silent_seconds` is by worker's id."""

    loads: tuple[LaneLoad, ...]
    workers: tuple[WorkerCapabilities, ...]
    silent_seconds: Mapping[str, float]


Event = (
    JobMoved
    | AttemptEnded
    | LeaseLost
    | CommandAnswered
    | DeadLettered
    | Redelivered
    | DutyRound
    | Reconnected
    | Beaten
    | FleetSeen
)
Observer = Callable[[Event], None]
"""Counts an event. It is called on hot paths: it returns at once, and raises nothing."""


class Span(Protocol):
    """One step of a job's road. `traceparent` is what the next step has to be given."""

    @property
    def traceparent(self) -> str | None: ...

    def child(
        self, name: str, began_ns: int, ended_ns: int, *, failure: str = "", **facts: str | int
    ) -> "Span":
        """Add a step inside this one that is over. Times are nanoseconds since 1970."""

    def fail(self, code: str) -> None:
        """Say that this step did not succeed."""


class Tracer(Protocol):
    """Keeps spans."""

    def span(
        self, name: str, parent: str | None = None, *, began_ns: int | None = None, **facts: str | int
    ) -> AbstractContextManager[Span]:
        """Open a span that ends with the context. `parent` is a traceparent; None begins a trace."""


class PassedOn:
    """A span that nobody keeps: the trace goes on behind it as it came."""

    def __init__(self, traceparent: str | None) -> None:
        self._traceparent = traceparent

    @property
    def traceparent(self) -> str | None:
        return self._traceparent

    def child(
        self,
        name: str,  # noqa: ARG002 - nobody keeps it
        began_ns: int,  # noqa: ARG002 - nobody keeps it
        ended_ns: int,  # noqa: ARG002 - nobody keeps it
        *,
        failure: str = "",  # noqa: ARG002 - nobody keeps it
        **facts: str | int,  # noqa: ARG002 - nobody keeps it
    ) -> Span:
        return self

    def fail(self, code: str) -> None:
        """Nobody keeps it."""


class Untraced:
    """The tracer of a process that keeps no spans."""

    def span(
        self,
        name: str,  # noqa: ARG002 - nobody keeps it
        parent: str | None = None,
        *,
        began_ns: int | None = None,  # noqa: ARG002 - nobody keeps it
        **facts: str | int,  # noqa: ARG002 - nobody keeps it
    ) -> AbstractContextManager[Span]:
        return contextlib.nullcontext(PassedOn(parent))


def unobserved(event: Event) -> None:
    """The observer of a process that counts nothing."""


UNTRACED: Final[Tracer] = Untraced()


class Telemetry(msgspec.Struct, frozen=True):
    """The two ports of one process."""

    observe: Observer = unobserved
    tracer: Tracer = UNTRACED

    @property
    def is_observed(self) -> bool:
        return self.observe is not unobserved


SILENT: Final = Telemetry()


def operation_of(record: JobRecord) -> str:
    """The operation that a job asks for; empty where its message could not be read."""
    return record.spec.operation if record.spec else ""


def moved(record: JobRecord, code: str = "") -> JobMoved:
    """The event of a record that was just written with another state; `code` is the cause, if it has one."""
    return JobMoved(operation_of(record), record.state, code)


def traceparent_of(headers: Mapping[str, str] | None) -> str | None:
    """The trace context that a message came with; None for something else in its place."""
    text = headers.get(TRACEPARENT) if headers else None
    return text if text is not None and _TRACEPARENT.fullmatch(text) else None


def trace_headers(traceparent: str | None) -> dict[str, str] | None:
    """The headers of a command that belongs to a trace."""
    return {TRACEPARENT: traceparent} if traceparent else None
