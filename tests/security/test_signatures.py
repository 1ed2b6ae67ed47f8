"""Workers with trusted keys execute exactly what one of them has signed, once, and nothing else.

Each attack is made for real, and `test_without_trusted_keys_the_same_attack_succeeds` opens the door.
"""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.dead import DeadLetters
from h2kbus.errors import DuplicateJob, ErrorCode, InvalidMessage
from h2kbus.signing import Signer, is_genuine, new_seed
from h2kbus.store import Entry
from subjects.codec import encode
from subjects.lifecycle import claimed, completed
from subjects.record import JobRecord, LaneMessage
from subjects.result import JobResult
from subjects.spec import ArtifactPolicy, Audit, ExecutionPolicy, ImageSpec, JobSpec
from subjects.states import State
from tests.conftest import Fleet, rehearsal
from tests.scheduler.conftest import letters, send, until_read

pytestmark = pytest.mark.anyio

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


async def test_job_signed_by_a_trusted_key_is_executed(yard: Yard) -> None:
    await yard.worker()
    yard.bus.signer = ANN
    await yard.bus.submit(yard.job())
    assert await yard.ends() == (State.COMPLETED, None)
    assert yard.executions == 1


async def test_job_without_a_signature_is_not_executed(yard: Yard) -> None:
    await yard.worker()
    await yard.put(yard.job())
    assert await yard.ends() == (State.FAILED, MISSING)
    assert yard.executions == 0


async def test_refused_job_is_not_tried_again_however_its_policy(yard: Yard) -> None:
    await yard.worker()
    await yard.put(yard.job(execution_policy=ExecutionPolicy(retry_count=5)))
    assert await yard.ends() == (State.FAILED, MISSING)
    assert (await yard.bus.status("j1")).attempt == 0


async def test_refusal_is_told_by_the_last_event(yard: Yard) -> None:
    await yard.worker()
    await yard.put(yard.job())
    events = [event async for event in yard.bus.watch("j1")]
    assert (events[-1].state, events[-1].details["code"]) == (State.FAILED, MISSING)


async def test_job_signed_by_another_key_is_not_executed(yard: Yard) -> None:
    await yard.worker()
    await yard.put(yard.signed(signer=MALLORY))
    assert await yard.ends() == (State.FAILED, INVALID)
    assert yard.executions == 0


async def test_signature_of_another_key_in_the_name_of_a_trusted_one_is_refused(yard: Yard) -> None:
    await yard.worker()
    await yard.put(naming_ann(yard.signed(signer=MALLORY)))
    assert await yard.ends() == (State.FAILED, INVALID)
    assert yard.executions == 0


async def test_signature_of_a_trusted_key_over_another_job_is_refused(yard: Yard) -> None:
    await yard.worker()
    other = yard.signed(parameters={})
    await yard.put(yard.job(created_at=other.created_at, signature=other.signature))
    assert await yard.ends() == (State.FAILED, INVALID)
    assert yard.executions == 0


async def test_signature_for_another_fleet_is_refused(yard: Yard) -> None:
    await yard.worker()
    await yard.put(ANN.sign(yard.job(), "staging.v1"))
    assert await yard.ends() == (State.FAILED, INVALID)
    assert yard.executions == 0


def naming_ann(spec: JobSpec) -> JobSpec:
    assert spec.signature is not None
    signature = msgspec.structs.replace(spec.signature, key=ANN.public_key)
    return msgspec.structs.replace(spec, signature=signature)


def with_parameter(spec: JobSpec) -> JobSpec:
    return msgspec.structs.replace(spec, parameters={**spec.parameters, "publish": False})


def changed(**fields: Any) -> Change:
    return lambda spec: msgspec.structs.replace(spec, **fields)


def with_flipped_bit(spec: JobSpec) -> JobSpec:
    assert spec.signature is not None
    value = bytes([spec.signature.value[0] ^ 1]) + spec.signature.value[1:]
    return msgspec.structs.replace(spec, signature=msgspec.structs.replace(spec.signature, value=value))


TAMPERED: dict[str, Change] = {
    "image": changed(image=ImageSpec(path="/etc/shadow")),
    "output path": changed(artifacts=ArtifactPolicy(output_path="/tmp", log_upload=False)),
    "a new parameter": with_parameter,
    "actions": changed(requested_actions=("work",)),
    "policy": changed(execution_policy=ExecutionPolicy(retry_count=1)),
    "audit": changed(audit=Audit(requested_by="tester", ticket="T-1")),
    "limit": changed(limit={"a": 1}),
    "time": changed(created_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)),
    "a bit of the signature": with_flipped_bit,
}


@pytest.mark.parametrize("tampered", TAMPERED)
async def test_job_that_was_changed_on_its_way_to_the_bus_is_not_executed(yard: Yard, tampered: str) -> None:
    await yard.worker()
    await yard.put(TAMPERED[tampered](yard.signed()))
    assert await yard.ends() == (State.FAILED, INVALID)
    assert yard.executions == 0


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


@pytest.mark.parametrize("tampered", [*TAMPERED, "signature taken off"])
async def test_job_that_a_hostile_scheduler_changed_is_not_executed(yard: Yard, tampered: str) -> None:
    await yard.put(yard.signed())
    change = TAMPERED.get(tampered, changed(signature=None))
    await by_a_hostile_scheduler(yard, respecified(change))
    await yard.worker()
    assert await yard.ends() == (State.FAILED, INVALID if tampered in TAMPERED else MISSING)
    assert yard.executions == 0


@pytest.mark.parametrize("attack", ["unsigned", "foreign key", "changed image"])
async def test_without_trusted_keys_the_same_attack_succeeds(yard: Yard, attack: str) -> None:
    spec = {"unsigned": yard.job(), "foreign key": yard.signed(signer=MALLORY)}.get(attack, yard.signed())
    await yard.put(spec)
    if attack == "changed image":
        await by_a_hostile_scheduler(yard, respecified(TAMPERED["image"]))
    await yard.worker(verifies=False)
    assert await yard.ends() == (State.COMPLETED, None)
    assert yard.executions == 1


@pytest.mark.parametrize("verifies", [True, False])
async def test_paths_of_an_unsigned_job_are_cleared_away_by_a_trusting_worker_only(
    yard: Yard, tmp_path: Path, verifies: bool
) -> None:
    """A record that says it has ended makes a worker clear up in the output directory that it names."""
    await yard.put(yard.job(artifacts=ArtifactPolicy(output_path=str(tmp_path))))
    left = tmp_path / ".h2kbus-j1-7"
    left.mkdir()

    def ended(record: JobRecord) -> JobRecord:
        now = dt.datetime.now(dt.UTC)
        running = claimed(record, worker_id="w", revision=1, now=now)
        return completed(running, JobResult(job_id="j1", status=State.COMPLETED, completed_at=now), now=now)

    await by_a_hostile_scheduler(yard, ended)
    await yard.worker(verifies=verifies)
    await yard.put(yard.signed("j2"))
    await yard.ends("j2")
    assert left.exists() == verifies


async def test_signed_job_in_the_lanes_of_another_pool_is_refused(yard: Yard) -> None:
    await yard.put(yard.signed(pool="staging"))
    entry = await yard.bus.verdict("j1")
    assert entry is not None
    await yard.put(yard.job("opens-the-lane"))
    await yard.bus.verdict("opens-the-lane")
    moved = await yard.bus.store.swap(msgspec.structs.replace(entry.record, pool="default"), entry.revision)
    await yard.bus.connection.publish(
        lane_of(yard, moved), encode(LaneMessage(revision=moved.revision, record=moved.record))
    )
    await yard.worker()
    assert await yard.ends() == (State.FAILED, INVALID)
    assert yard.executions == 0


async def test_replay_under_the_same_id_changes_nothing(yard: Yard) -> None:
    await yard.worker()
    spec = yard.signed()
    await yard.put(spec)
    assert await yard.ends() == (State.COMPLETED, None)
    before = await yard.bus.store.get("j1")
    await yard.put(spec)
    await until_read(yard.bus)
    await yard.put(yard.signed("after"))
    await yard.ends("after")
    assert await yard.bus.store.get("j1") == before
    assert yard.executions == 2


async def test_replay_under_another_id_is_refused(yard: Yard) -> None:
    await yard.worker()
    await yard.put(yard.signed())
    await yard.ends()
    await yard.put(msgspec.structs.replace(yard.signed(), job_id="j2"))
    assert await yard.ends("j2") == (State.FAILED, INVALID)
    assert yard.executions == 1


async def test_record_under_another_id_than_the_signed_one_is_refused(yard: Yard) -> None:
    """The id in the record names the files of a job, so that it may not differ from the signed one."""
    await yard.put(yard.signed())
    entry = await yard.bus.verdict("j1")
    assert entry is not None
    copy = await yard.bus.store.create(msgspec.structs.replace(entry.record, job_id="j2"))
    await yard.bus.connection.publish(
        lane_of(yard, copy), encode(LaneMessage(revision=copy.revision, record=copy.record))
    )
    await yard.worker()
    assert await yard.ends("j2") == (State.FAILED, INVALID)
    assert await yard.ends("j1") == (State.COMPLETED, None)
    assert yard.executions == 1


@pytest.mark.parametrize(
    ("days", "end"),
    [(-29.1, (State.FAILED, INVALID)), (-28.9, (State.COMPLETED, None)),
     (0.9, (State.COMPLETED, None)), (1.1, (State.FAILED, INVALID))],
)  # fmt: skip
async def test_signature_expires_before_the_record_that_makes_its_replay_a_no_op(
    yard: Yard, days: float, end: tuple[State, ErrorCode | None]
) -> None:
    await yard.worker()
    await yard.put(yard.signed(created_at=dt.datetime.now(dt.UTC) + dt.timedelta(days=days)))
    assert await yard.ends() == end
    assert yard.executions == (1 if end[1] is None else 0)


async def test_same_job_without_its_signature_is_another_job(yard: Yard) -> None:
    """Whoever is faster with an unsigned copy is found out by the signer."""
    await yard.put(yard.job())
    await yard.bus.verdict("j1")
    spec = yard.signed()
    await yard.put(spec)
    with pytest.raises(DuplicateJob):
        await yard.bus.verdict("j1", spec)


async def test_submitting_a_signed_job_twice_makes_one(yard: Yard) -> None:
    yard.bus.signer = ANN
    for seconds in (0, 1):
        at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
        await yard.bus.submit(yard.job(created_at=at))
        await until_read(yard.bus)
    assert await yard.bus.verdict("j1", yard.signed()) is not None
    assert await letters_now(yard) == []


async def letters_now(yard: Yard) -> list[str]:
    return [found.letter.reason async for found in DeadLetters(yard.bus).read()]


async def test_retry_by_the_signer_is_signed_anew(yard: Yard) -> None:
    await yard.worker()
    yard.bus.signer = ANN
    await yard.bus.submit(yard.job())
    await yard.ends()
    again = await yard.bus.retry("j1")
    assert await yard.ends(again) == (State.COMPLETED, None)
    record = await yard.bus.status(again)
    assert record.parent == "j1"
    assert record.spec is not None
    assert is_genuine(record.spec, yard.bus.grammar.root)


async def test_retry_by_somebody_without_a_key_is_not_executed(yard: Yard) -> None:
    await yard.worker()
    await yard.put(yard.signed())
    await yard.ends()
    again = await yard.bus.retry("j1")
    assert await yard.ends(again) == (State.FAILED, MISSING)
    assert yard.executions == 1


@pytest.mark.parametrize("attack", ["changed record", "signed by another", "not signed"])
async def test_retry_does_not_sign_what_others_wrote_into_the_record(yard: Yard, attack: str) -> None:
    await yard.put({"signed by another": yard.signed(signer=MALLORY), "not signed": yard.job()}.get(
        attack, yard.signed()
    ))  # fmt: skip
    await yard.bus.verdict("j1")
    await yard.bus.cancel("j1")
    await yard.ends()
    if attack == "changed record":
        entry = await yard.bus.store.get("j1")
        await yard.bus.store.swap(respecified(TAMPERED["image"])(entry.record), entry.revision)
    yard.bus.signer = ANN
    with pytest.raises(InvalidMessage, match="submit it from its document"):
        await yard.bus.retry("j1")


async def test_signed_dead_letter_is_not_sent_again_under_another_id(yard: Yard) -> None:
    await yard.put(yard.signed())
    await yard.bus.verdict("j1")
    await yard.put(yard.signed(parameters={}))
    await letters(yard.bus)
    [letter] = [each async for each in DeadLetters(yard.bus).read(reason="duplicate-id")]
    with pytest.raises(InvalidMessage, match="signed under that id"):
        await DeadLetters(yard.bus).requeue(letter.number)


async def test_signature_is_still_good_after_the_job_is_put_back_into_its_lane(yard: Yard) -> None:
    await yard.put(yard.signed())
    await by_a_hostile_scheduler(yard, lambda record: record)
    await yard.worker()
    assert await yard.ends() == (State.COMPLETED, None)
