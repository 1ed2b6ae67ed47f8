"""Workers with trusted keys execute exactly what one of them has signed, once, and nothing else.

Each attack is made for real, and `test_without_trusted_keys_the_same_attack_succeeds` opens the door.
"""

import datetime as dt
from pathlib import Path

import anyio
import msgspec
import pytest

from h2kbus.artifacts import find, log_name
from subjects.codec import encode
from subjects.lifecycle import claimed, completed
from subjects.record import JobRecord, LaneMessage
from subjects.result import JobResult
from subjects.spec import ArtifactPolicy, Audit, ExecutionPolicy, ImageSpec, JobSpec
from subjects.states import State
from tests.security.signing.conftest import (
    ANN,
    INVALID,
    MALLORY,
    MISSING,
    Change,
    Yard,
    by_a_hostile_scheduler,
    changed,
    lane_of,
    respecified,
)

pytestmark = pytest.mark.anyio


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


@pytest.mark.slow
async def test_job_whose_record_is_changed_while_it_runs_goes_on_as_it_was_signed(
    yard: Yard, tmp_path: Path
) -> None:
    """Another job's log is not read and uploaded because a record says so by now."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "j1.log").write_text("nobody's business")
    await yard.worker()
    signed = ArtifactPolicy(output_path=str(out), log_upload=False)
    parameters = {"seconds": 1.5, "publish": True}
    await yard.put(yard.signed(artifacts=signed, parameters=parameters))
    store, control = yard.bus.store, yard.bus.grammar.control("worker-1")
    with anyio.fail_after(10):
        while (entry := await store.find("j1")) is None or not entry.record.state.leased:
            await anyio.sleep(0.01)
    change = changed(artifacts=ArtifactPolicy(output_path=str(elsewhere), log_upload=True))
    await store.swap(respecified(change)(entry.record), entry.revision)
    await yard.bus.connection.publish_unconfirmed(control, b"j1")
    assert await yard.ends() == (State.COMPLETED, None)
    assert await find(yard.bus.connection, yard.bus.topology, log_name("j1", 1)) is None
    assert (out / "j1.out").exists()


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
