"""A signed job runs once: not again, not under another id, not from what others made of its record."""

import datetime as dt

import msgspec
import pytest

from h2kbus.dead import DeadLetters
from h2kbus.errors import DuplicateJob, ErrorCode, InvalidMessage
from h2kbus.signing import is_genuine
from subjects.codec import encode
from subjects.commands import RetryCommand
from subjects.record import LaneMessage
from subjects.spec import ImageSpec
from subjects.states import State
from tests.scheduler.conftest import letters, send, until_read
from tests.security.signing.conftest import (
    ANN,
    INVALID,
    MALLORY,
    MISSING,
    Yard,
    by_a_hostile_scheduler,
    changed,
    lane_of,
    respecified,
)

pytestmark = pytest.mark.anyio


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


async def test_retry_with_the_signature_of_its_parent_is_refused(yard: Yard) -> None:
    await yard.worker()
    spec = yard.signed()
    await yard.put(spec)
    await yard.ends()
    command = RetryCommand(parent="j1", created_at=spec.created_at, signature=spec.signature)
    await send(yard.bus, "retry", "j2", encode(command))
    assert await yard.ends("j2") == (State.FAILED, INVALID)
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
        await yard.bus.store.swap(
            respecified(changed(image=ImageSpec(path="/etc/shadow")))(entry.record), entry.revision
        )
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
