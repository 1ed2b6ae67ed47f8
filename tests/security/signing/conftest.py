"""A bus whose workers trust one key, and those who would like to get around it."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.errors import ErrorCode
from h2kbus.signing import Signer, new_seed
from h2kbus.store import Entry
from subjects.codec import encode
from subjects.record import JobRecord, LaneMessage
from subjects.spec import JobSpec
from subjects.states import State
from tests.conftest import Fleet, rehearsal
from tests.scheduler.conftest import send

ANN, MALLORY = Signer(new_seed()), Signer(new_seed())
MISSING, INVALID = ErrorCode.SIGNATURE_MISSING, ErrorCode.SIGNATURE_INVALID
Change = Callable[[JobSpec], JobSpec]


class Yard:
    """A bus with one scheduler, whose executions leave a mark; its worker trusts Ann."""

    def __init__(self, bus: Bus, fleet: Fleet, place: Path) -> None:
        self.bus = bus
        self.fleet = fleet
        self.mark = place / "executed"

    async def worker(self, *, verifies: bool = True) -> None:
        await self.fleet.worker(trusted_keys=frozenset({ANN.public_key}) if verifies else None)

    def job(self, job_id: str = "j1", **changes: Any) -> JobSpec:
        spec = rehearsal(job_id=job_id, mark=str(self.mark))
        return msgspec.structs.replace(spec, **{"created_at": dt.datetime.now(dt.UTC), **changes})

    def signed(self, job_id: str = "j1", signer: Signer = ANN, **changes: Any) -> JobSpec:
        return signer.sign(self.job(job_id, **changes), self.bus.grammar.root)

    async def put(self, spec: JobSpec, job_id: str | None = None) -> None:
        """Send a job as any NATS client can, signed or not."""
        await send(self.bus, "submit", job_id or spec.job_id or "", encode(spec))

    @property
    def executions(self) -> int:
        return len(self.mark.read_text().splitlines()) if self.mark.exists() else 0

    async def ends(self, job_id: str = "j1") -> tuple[State, ErrorCode | None]:
        with anyio.fail_after(20):
            await self.bus.verdict(job_id)
            record = await self.bus.result(job_id)
        return record.state, record.result.error.code if record.result and record.result.error else None


@pytest.fixture
async def yard(bus: Bus, fleet: Fleet, tmp_path: Path) -> Yard:
    await fleet.scheduler()
    return Yard(bus, fleet, tmp_path)


def changed(**fields: Any) -> Change:
    return lambda spec: msgspec.structs.replace(spec, **fields)


async def by_a_hostile_scheduler(yard: Yard, change: Callable[[JobRecord], JobRecord]) -> None:
    """Change the record of a job that waits in its lane, and what the lane holds, as a scheduler may."""
    entry = await yard.bus.verdict("j1")
    assert entry is not None
    with anyio.fail_after(5):
        while await yard.bus.connection.get_last(yard.bus.topology.jobs_stream, lane_of(yard, entry)) is None:
            await anyio.sleep(0.01)
    body = {"filter": lane_of(yard, entry)}
    await yard.bus.connection.api(f"STREAM.PURGE.{yard.bus.topology.jobs_stream}", body)
    mine = await yard.bus.store.swap(change(entry.record), entry.revision)
    message = LaneMessage(revision=mine.revision, record=mine.record)
    await yard.bus.connection.publish(lane_of(yard, entry), encode(message))


def lane_of(yard: Yard, entry: Entry) -> str:
    record = entry.record
    return yard.bus.grammar.job(record.pool, record.lane, record.priority, record.job_id)


def respecified(change: Change) -> Callable[[JobRecord], JobRecord]:
    return lambda record: msgspec.structs.replace(record, spec=record.spec and change(record.spec))
