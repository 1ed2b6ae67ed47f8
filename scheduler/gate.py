"""Lets in what a submitter's quota allows, and refuses the rest before anything is written of it.

A refused command is gone: it makes no record and no dead letter, so that a flood fills nothing. Its
submitter finds the reason under one key, which is written once a second at the most.
"""

import datetime as dt
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import anyio
import msgspec

from h2kbus.changes import ChangeFeed
from h2kbus.connection import Connection
from h2kbus.errors import BusError
from h2kbus.quotas import Quotas, read_quotas
from scheduler.stock import Stocks
from subjects.codec import encode
from subjects.commands import Verb
from subjects.quota import RATE_SECONDS, Allowance, Quota, Refusal, excess
from subjects.record import JobRecord
from subjects.topology import Topology

log = logging.getLogger("h2kbus.scheduler")

PAUSE_SECONDS: Final = 1.0
TELL_SECONDS: Final = 1.0
REMEMBERED: Final = 50_000
"""How many submitters' rates are remembered; more names than that are of somebody who makes them up."""


class _Word(msgspec.Struct):
    """What one submitter was refused and told of, at moments of the monotonic clock.

    `leaving` is set once it is known whether the word that is under way has come about.
    """

    refused: int = 0
    last: float = 0.0
    told: float = float("-inf")
    leaving: anyio.Event | None = None


class Gate:
    """The quotas of one fleet, as one scheduler holds them. Without any, nothing is counted."""

    def __init__(self, connection: Connection, topology: Topology, name: str) -> None:
        self._connection = connection
        self._topology = topology
        self._name = name
        self._quotas = Quotas()
        self._stocks = Stocks(ChangeFeed(connection, topology))
        self._allowances: dict[tuple[str, bool], Allowance] = {}
        self._words: dict[str, _Word] = {}

    async def run(self) -> None:
        """Keep up with what operators set and what submitters have, until cancelled."""
        while True:
            try:
                await self.refresh()
            except BusError as error:
                log.warning("quotas and what counts against them are not up to date: %s", error)
            await anyio.sleep(PAUSE_SECONDS)

    async def refresh(self) -> None:
        """Learn what has changed. Raises BusError."""
        self._forget_the_idle(time.monotonic())
        quotas = await read_quotas(self._connection, self._topology)
        if not quotas.by_name:
            self._stocks.clear()
        else:
            # Quotas hold once everything has been counted that was there before them.
            await self._stocks.refresh()
        self._quotas = quotas

    def objection(self, submitter: str, verb: str, size: int, *, again: bool = False) -> str | None:
        """Why a command of so many bytes is refused, in words; None when it may be carried out.

        Each call that finds nothing uses up one of the submitter's rate, unless the command comes `again`.
        """
        quota = self._quotas.of(submitter)
        if quota is None:
            return None
        cancels = verb == Verb.CANCEL
        too_much = None if cancels else excess(quota, self._stocks.of(submitter), size)
        return too_much or (None if again else self._too_fast(submitter, quota, cancels=cancels))

    def under_way(self, submitter: str, verb: str, size: int) -> AbstractContextManager[None]:
        """Count a job while it is made."""
        counts = self._quotas.by_name and verb != Verb.CANCEL
        return self._stocks.under_way(submitter, size) if counts else nullcontext()

    def made(self, record: JobRecord) -> None:
        """Count a job that this scheduler has just made."""
        if self._quotas.by_name:
            self._stocks.note(record)

    async def tell(self, submitter: str, reason: str) -> None:
        """Leave word of a refusal where its submitter looks. Raises BusError."""
        now = time.monotonic()
        word = self._words.setdefault(submitter, _Word())
        word.refused += 1
        word.last = now
        while word.leaving is not None:
            await word.leaving.wait()
        # Those that are refused meanwhile need no word of their own.
        if now - word.told < TELL_SECONDS:
            return
        leaving = word.leaving = anyio.Event()
        try:
            await self._leave(submitter, reason, word.refused)
            word.told = time.monotonic()
        finally:
            leaving.set()
            word.leaving = None
        log.warning("commands of %s are refused: %s", submitter, reason)

    async def _leave(self, submitter: str, reason: str, refused: int) -> None:
        refusal = Refusal(
            reason=f"{submitter}: {reason}", refused=refused, by=self._name, at=dt.datetime.now(dt.UTC)
        )
        await self._connection.publish(self._topology.refusal_subject(submitter), encode(refusal))

    def _too_fast(self, submitter: str, quota: Quota, *, cancels: bool) -> str | None:
        if quota.rate is None:
            return None
        now, key = time.monotonic(), (submitter, cancels)
        allowance = self._allowances.get(key)
        if allowance is None:
            if len(self._allowances) >= REMEMBERED:
                self._allowances.clear()
            allowance = self._allowances[key] = Allowance(quota.rate, now)
        return None if allowance.take(quota.rate, now) else f"{quota.rate:g} commands a second are allowed"

    def _forget_the_idle(self, now: float) -> None:
        idle = [key for key, allowance in self._allowances.items() if allowance.is_idle(now)]
        for key in idle:
            del self._allowances[key]
        for name in [name for name, word in self._words.items() if now - word.last > RATE_SECONDS]:
            del self._words[name]
