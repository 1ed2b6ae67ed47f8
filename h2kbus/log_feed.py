"""The log of a job while it is being written: what is stored of it, then what comes, attempt by attempt.

Nothing is subscribed to and no consumer is made: every second the store is asked for what is new.
"""

import hashlib
from collections.abc import AsyncGenerator
from typing import Final

import anyio
import msgspec

from h2kbus.artifacts import chunks_of, find, log_name
from h2kbus.client import Bus
from h2kbus.errors import BusError, BusTimeout, BusUnreachable, JobNotFound
from subjects.record import JobRecord

LOOK_SECONDS: Final = 1.0
"""As often as a worker stores what is new."""

OUTAGE: Final = (BusTimeout, BusUnreachable)
"""What passes by itself: what was read is not read again, and nothing is left out."""


class LogPart(msgspec.Struct, frozen=True):
    """Some of a log, or `notice`, something to say about it."""

    attempt: int
    content: bytes = b""
    notice: str = ""


class LogFeed:
    """The logs of one job's attempts, from attempt `first` on, by default the last that there is."""

    def __init__(self, bus: Bus, job_id: str, first: int | None = None) -> None:
        self.record: JobRecord | None = None
        self._bus = bus
        self._job_id = job_id
        self._attempt = first or 0
        self._nuid = ""
        self._finished = False
        self._after = 0
        self._seen = hashlib.sha256()
        self._said = ""

    @property
    def has_log(self) -> bool:
        """Whether the attempt that it is at has a log."""
        return bool(self._nuid)

    async def follow(self) -> AsyncGenerator[LogPart]:
        """Every part once and in order, until the job has ended; its last `record` is there then.

        Raises JobNotFound, and BusError for what does not pass by itself.
        """
        while True:
            try:
                async for part in self._look():
                    yield part
            except OUTAGE as error:
                for part in self._once(f"the bus does not answer, it is asked again: {error}"):
                    yield part
            else:
                if self.record is not None and self.record.state.terminal:
                    return
            await anyio.sleep(LOOK_SECONDS)

    async def so_far(self) -> AsyncGenerator[LogPart]:
        """What is stored now of the attempt's log, or of the last log that there is.

        Raises JobNotFound, and BusError.
        """
        self.record = record = await self._bus.status(self._job_id)
        # An attempt that was handed back is not counted, and has left a log.
        wanted = [self._attempt] if self._attempt else range(record.attempt + 1, 0, -1)
        for number in wanted:
            self._begin(number)
            async for part in self._read_new():
                yield part
            if self._nuid and not self._finished:
                yield LogPart(number, notice=self._why_open(record))
            if self._nuid:
                return

    async def _look(self) -> AsyncGenerator[LogPart]:
        """What is new since the last look. The record is read first: what ended before is stored by now."""
        try:
            record = await self._bus.status(self._job_id)
        except JobNotFound:
            if not await self._bus.is_waiting(self._job_id):
                raise
            for part in self._once("the job waits for a scheduler"):
                yield part
            return
        self._attempt = self._attempt or max(record.attempt, 1)
        while True:
            async for part in self._read_new():
                yield part
            over = self._attempt < record.attempt or record.state.terminal
            if over and self._nuid and not self._finished:
                yield LogPart(self._attempt, notice=self._why_open(record, over=True))
            if self._attempt >= record.attempt:
                break
            self._begin(self._attempt + 1)
        self.record = record
        if not self._nuid and not record.state.terminal:
            for part in self._once(_why_waits(record)):
                yield part

    async def _read_new(self) -> AsyncGenerator[LogPart]:
        """What is stored of this attempt's log and was not read yet.

        An attempt that a worker hands back is begun again under its number, with a log of its own.
        """
        bus, name = self._bus, log_name(self._job_id, self._attempt)
        found = await find(bus.connection, bus.topology, name)
        if found is None or (found.nuid == self._nuid and self._finished):
            return
        if found.nuid != self._nuid:
            self._begin(self._attempt, found.nuid)
        async for stored in chunks_of(bus.connection, bus.topology, found, self._after):
            self._after = stored.seq
            self._seen.update(stored.data)
            yield LogPart(self._attempt, stored.data)
        self._finished = not found.is_open
        if self._finished and found.sha256 != self._seen.hexdigest():
            raise BusError(f"{name} is damaged: it has expired in part, or was changed")

    def _begin(self, attempt: int, nuid: str = "") -> None:
        self._attempt, self._nuid = attempt, nuid
        self._finished, self._after, self._seen = False, 0, hashlib.sha256()

    def _once(self, words: str) -> list[LogPart]:
        """Say it, unless it was what was said last."""
        if words == self._said:
            return []
        self._said = words
        return [LogPart(self._attempt, notice=words)]

    def _why_open(self, record: JobRecord, *, over: bool = False) -> str:
        if over or record.state.terminal or self._attempt < record.attempt:
            return f"attempt {self._attempt} ended without finishing its log: its worker was lost"
        return f"attempt {self._attempt} still runs, and more of its log is to come"


def _why_waits(record: JobRecord) -> str:
    if record.state.leased:
        return f"attempt {record.attempt} has logged nothing yet"
    reason = f": {record.pending_reason}" if record.pending_reason else ""
    return f"the job is {record.state}{reason}"
