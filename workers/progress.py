"""How far an attempt is: gathered as the operation speaks, sent at a bounded rate."""

import datetime as dt
import itertools
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from subjects.events import ProgressEvent, event_seq
from subjects.operations import Phase
from subjects.record import JobRecord, ProgressSummary
from subjects.states import State
from workers import bounds

MIN_ETA_FRACTION: Final = 0.02
"""Below this share of the whole an estimate of the rest is noise."""


MOST_PHASES: Final = 200
"""How many stays in phases are remembered of one attempt."""


class Snapshot(msgspec.Struct, frozen=True):
    """Where an attempt stood at one moment."""

    phase: str
    percent: float
    message: str
    bytes_done: int | None = None
    bytes_total: int | None = None
    phase_percent: float | None = None


class PhaseSpan(msgspec.Struct, frozen=True):
    """One stay in a phase. Times are nanoseconds since 1970."""

    name: str
    began_ns: int
    ended_ns: int


class ProgressReport:
    """What an operation reports to. Percentages follow the phases' weights and never fall."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        total = sum(phase.weight for phase in phases)
        self._weights = {phase.name: phase.weight / total for phase in phases}
        before = itertools.accumulate(self._weights.values(), initial=0.0)
        self._begins_at = dict(zip(self._weights, before, strict=False))
        self._phase = ""
        self._phase_began = self._began = time.monotonic()
        self._phase_began_ns = 0
        self.phases: list[PhaseSpan] = []
        self._percent = 0.0
        self._unsent: list[Snapshot] = []
        self._sent_phase = ""
        self.latest: Snapshot | None = None
        self.phase_seconds: dict[str, float] = {}

    @property
    def phase(self) -> str | None:
        return self._phase or None

    def enter(self, phase: str, message: str = "") -> None:
        """Begin a phase. Raises KeyError for one that the job was not to have."""
        self._weights[phase]
        self._close_phase()
        self._phase = phase
        self._add(Snapshot(phase, self._percent_at(0.0), message), replaces=False)

    def advance(
        self,
        fraction: float,
        message: str = "",
        *,
        bytes_done: int | None = None,
        bytes_total: int | None = None,
    ) -> None:
        done = min(max(fraction, 0.0), 1.0)
        snapshot = Snapshot(
            self._phase, self._percent_at(done), message, bytes_done, bytes_total, round(100 * done, 2)
        )
        self._add(snapshot, replaces=True)

    def finish(self) -> None:
        """The operation has ended: account for its last phase."""
        self._close_phase()
        self._phase = ""

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    @property
    def has_new_phase(self) -> bool:
        """Whether something unsent belongs to a phase of which nothing was sent."""
        return any(snapshot.phase != self._sent_phase for snapshot in self._unsent)

    def take_unsent(self) -> list[Snapshot]:
        """What should be sent now: every phase that began, and the newest word of each."""
        unsent, self._unsent = self._unsent, []
        if unsent:
            self._sent_phase = unsent[-1].phase
        return unsent

    def summary(self) -> ProgressSummary | None:
        if self.latest is None:
            return None
        last = self.latest
        return ProgressSummary(phase=last.phase, progress_percent=last.percent, message=last.message)

    def eta_seconds(self, snapshot: Snapshot) -> float | None:
        """The rest, if the whole goes on at the average speed so far."""
        done = snapshot.percent / 100
        if done < MIN_ETA_FRACTION:
            return None
        return round((time.monotonic() - self._began) * (1 - done) / done, 1)

    def _percent_at(self, fraction: float) -> float:
        share = self._begins_at.get(self._phase, 0.0) + self._weights.get(self._phase, 0.0) * fraction
        self._percent = max(self._percent, round(100 * share, 2))
        return min(self._percent, 100.0)

    def _close_phase(self) -> None:
        now = time.monotonic()
        if self._phase:
            spent = self.phase_seconds.get(self._phase, 0.0) + now - self._phase_began
            self.phase_seconds[self._phase] = round(spent, 4)
            if len(self.phases) < MOST_PHASES:
                self.phases.append(PhaseSpan(self._phase, self._phase_began_ns, time.time_ns()))
        self._phase_began, self._phase_began_ns = now, time.time_ns()

    def _add(self, snapshot: Snapshot, *, replaces: bool) -> None:
        snapshot = msgspec.structs.replace(snapshot, message=bounds.words(snapshot.message))
        same = self._unsent and self._unsent[-1].phase == snapshot.phase
        if replaces and same:
            self._unsent.pop()
        self._unsent.append(snapshot)
        self.latest = snapshot


def progress_event(
    record: JobRecord, revision: int, nth: int, snapshot: Snapshot, eta: float | None
) -> ProgressEvent:
    """The event of one snapshot, sent as the `nth` under the record's `revision`."""
    return ProgressEvent(
        job_id=record.job_id,
        seq=event_seq(revision, nth),
        timestamp=dt.datetime.now(dt.UTC),
        state=State.PROGRESSING,
        phase=snapshot.phase,
        progress_percent=snapshot.percent,
        message=snapshot.message,
        attempt=record.attempt,
        worker_id=record.worker_id,
        bytes_done=snapshot.bytes_done,
        bytes_total=snapshot.bytes_total,
        phase_percent=snapshot.phase_percent,
        eta_seconds=eta,
    )
