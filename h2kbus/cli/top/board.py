"""What the screen shows, as it is known now: read from the bus, and kept up by progress events."""

import datetime as dt
import time
from collections import deque
from typing import Any, Final

import msgspec

from h2kbus.cli.rate import Mark
from h2kbus.client import Bus
from h2kbus.fleet import LaneLoad
from subjects.events import ProgressEvent, milestone
from subjects.fleet import WorkerCapabilities
from subjects.record import JobRecord
from subjects.states import State

REMEMBERED_ENDS: Final = 50
RECALLED_SECONDS: Final = 600.0
RECALLED_RECORDS: Final = 5000
GONE_SECONDS: Final = 60.0
"""A job that was heard of and that no worker names any more is left out after this long."""
_RUNNING: Final = frozenset({State.ASSIGNED, State.RUNNING, State.PROGRESSING})


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """One job that a worker holds. `mark` is how far it was when it was heard of last, and how fast."""

    job_id: str
    worker_id: str = ""
    operation: str = ""
    image: str = ""
    phase: str = ""
    message: str = ""
    percent: float = 0.0
    mark: Mark = msgspec.field(default_factory=lambda: Mark("", None, time.monotonic()))
    eta_seconds: float | None = None

    def matches(self, words: str) -> bool:
        """Whether every word stands in its id, worker, operation or image."""
        text = f"{self.job_id} {self.worker_id} {self.operation} {self.image}".lower()
        return all(each in text for each in words.lower().split())

    def told(self, event: ProgressEvent) -> "Running":
        """The job after an event."""
        return msgspec.structs.replace(
            self,
            worker_id=event.worker_id or self.worker_id,
            phase=event.phase,
            message=event.message,
            percent=event.progress_percent,
            mark=self.mark.moved(event),
            eta_seconds=event.eta_seconds,
        )


class Ended(msgspec.Struct, frozen=True):
    """One job whose end was heard of."""

    job_id: str
    state: State
    at: str
    code: str
    message: str


class Board:
    """Lanes, workers, running jobs and last ends of one fleet."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.workers: list[WorkerCapabilities] = []
        self.lanes: list[LaneLoad] = []
        self.ended: deque[Ended] = deque(maxlen=REMEMBERED_ENDS)
        self.trouble = ""
        self._running: dict[str, Running] = {}

    def running(self, words: str = "") -> list[Running]:
        """The jobs that workers hold and that fit the filter, the longest known first."""
        return [each for each in self._running.values() if each.matches(words)]

    async def recall(self) -> None:
        """Read what has happened to jobs a short while ago; of very many, to some. Raises BusError."""
        since = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=RECALLED_SECONDS)
        read = 0
        async for entry in self._bus.store.scan(since.isoformat()):
            read += 1
            if entry.record.state.terminal:
                self.hear(milestone(entry.record, entry.revision))
            self._describe(entry.record)
            if read == RECALLED_RECORDS:
                return

    async def refresh(self) -> None:
        """Read lanes and workers anew, and the records of jobs that are not known yet. Raises BusError."""
        self.workers = await self._bus.workers()
        self.lanes = await self._bus.lane_loads()
        held = {job_id for worker in self.workers for job_id in worker.running_jobs}
        unknown = [each for each in {*held, *self._running} if not self._is_known(each)]
        for entry in await self._bus.store.find_many(unknown):
            if entry is not None:
                self._describe(entry.record)
        now = time.monotonic()
        for job in list(self._running.values()):
            if job.job_id not in held and now - job.mark.at > GONE_SECONDS:
                del self._running[job.job_id]

    def _describe(self, record: JobRecord) -> None:
        """Add what a record says of a job that runs. What an event has said of it meanwhile is newer."""
        if record.state in _RUNNING:
            self._running[record.job_id] = _described(record, self._running.get(record.job_id))

    def _is_known(self, job_id: str) -> bool:
        return job_id in self._running and bool(self._running[job_id].operation)

    def hear(self, event: ProgressEvent) -> None:
        """Take in one live event of any job."""
        if event.state.terminal:
            self._running.pop(event.job_id, None)
            self.ended.appendleft(_end_of(event))
        elif event.state in _RUNNING:
            known = self._running.get(event.job_id, Running(job_id=event.job_id))
            self._running[event.job_id] = known.told(event)
        else:
            # It waits again: for another attempt, or for another worker.
            self._running.pop(event.job_id, None)

    def snapshot(self) -> dict[str, Any]:
        """All of it as one object, for programs."""
        return {
            "lanes": self.lanes,
            "workers": self.workers,
            "running": list(self._running.values()),
        }


def _described(record: JobRecord, heard: Running | None) -> Running:
    spec, last = record.spec, record.progress
    known = heard or Running(
        job_id=record.job_id,
        worker_id=record.worker_id or "",
        phase=last.phase if last else "",
        message=last.message if last else "",
        percent=last.progress_percent if last else 0.0,
    )
    operation, image = (spec.operation, spec.image.path) if spec else ("", "")
    return msgspec.structs.replace(known, operation=operation, image=image)


def _end_of(event: ProgressEvent) -> Ended:
    moment = event.timestamp.astimezone().strftime("%H:%M:%S")
    return Ended(event.job_id, event.state, moment, str(event.details.get("code", "")), event.message)
