"""Messages and outputs without measure are refused or cut, and hold nobody else up."""

import resource
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from h2kbus.client import Bus
from h2kbus.errors import InvalidMessage
from scheduler.fleet import FleetView
from subjects.codec import decode, encode
from subjects.fit import Demand
from subjects.schema import MESSAGES
from subjects.sizes import MAX_BYTES, MAX_PAYLOAD_BYTES
from subjects.spec import ArtifactPolicy, JobSpec
from subjects.states import State
from tests.conftest import Fleet, rehearsal, worker_profile
from tests.scheduler.conftest import letters, lives, send, until_read
from tests.subjects.test_schema import examples
from workers.bounds import MAX_FACTS_BYTES, MAX_WARNINGS, MAX_WORDS

pytestmark = pytest.mark.anyio

LOG_BYTES = 1 << 20
"""Twice what one tool may leave in its job's log, and the lines around it."""


def padded(message: msgspec.Struct, size: int) -> bytes:
    """The message with an unknown field, which every reader ignores, that makes it so large."""
    body = {**msgspec.to_builtins(message), "padding": ""}
    room = size - len(encode(body))
    return encode({**body, "padding": "x" * room})


BOUNDED = [each for each in examples() if type(each) in MAX_BYTES]


@pytest.mark.parametrize("message", BOUNDED, ids=lambda each: type(each).__name__)
def test_message_is_read_up_to_its_size_and_refused_beyond(message: msgspec.Struct) -> None:
    kind = type(message)
    assert decode(kind, padded(message, MAX_BYTES[kind])) == message
    with pytest.raises(InvalidMessage, match=r"bytes; \d+ are allowed"):
        decode(kind, padded(message, MAX_BYTES[kind] + 1))


def test_every_message_on_the_wire_has_a_size() -> None:
    """A submission has its own, and parameters come inside of one."""
    without = {kind.__name__ for kind in MESSAGES if kind not in MAX_BYTES}
    assert {name for name in without if not name.endswith("Parameters")} == {"JobSpec"}


async def test_cancel_without_measure_is_kept_aside_and_cancels_nothing(bus: Bus, fleet: Fleet) -> None:
    await fleet.scheduler()
    await bus.submit(rehearsal(job_id="j1"))
    await bus.verdict("j1")
    await send(bus, "cancel", "j1", b'{"reason":"' + b" " * 900_000 + b'"}')
    [(subject, letter)] = await letters(bus)
    assert (subject, letter.message) == (
        "invalid-command.j1", "$: the message has 900013 bytes; 16384 are allowed",
    )  # fmt: skip
    assert (await bus.status("j1")).state is State.QUEUED


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\x0bb"])
async def test_command_whose_subject_is_no_text_is_kept_aside_and_stops_nobody(
    bus: Bus, running: Fleet, name: bytes
) -> None:
    subject = b"%s.commands.tester.submit.%s" % (bus.topology.grammar.root.encode(), name)
    assert bus.connection.nats._transport is not None
    bus.connection.nats._transport.write(b"PUB %s 2\r\n{}\r\n" % subject)
    with anyio.fail_after(30):
        [(kept, _)] = await letters(bus)
        assert kept.startswith("invalid-command.")
        await bus.submit(rehearsal(job_id="j1"))
        assert (await bus.result("j1")).state is State.COMPLETED


@pytest.mark.parametrize("body", [b"no heartbeat", b'{"worker_id":7}', None], ids=str)
async def test_heartbeat_that_is_none_hides_no_other_worker(
    bus: Bus, fleet: Fleet, body: bytes | None
) -> None:
    await fleet.scheduler()
    await lives(bus, "honest")
    broken = body or padded(worker_profile("hostile"), MAX_BYTES[type(worker_profile("w"))] + 1)
    await bus.connection.publish(bus.topology.worker_subject("hostile"), broken)
    assert [each.worker_id for each in await bus.workers()] == ["honest"]
    view = FleetView(bus.connection, bus.topology)
    demand = Demand.of(rehearsal(), frozenset({"op-rehearse"}))
    assert await view.unserved(demand) is None
    nobody = Demand.of(rehearsal(), frozenset({"nbd"}))
    assert await view.unserved(nobody) is not None


async def test_announcement_of_a_lane_without_measure_stops_no_worker(bus: Bus, running: Fleet) -> None:
    subject = bus.topology.lane_subject("default", "nbd", 3)
    await bus.connection.publish(subject, b'{"pool":"' + b"x" * 500_000 + b'"}')
    await bus.submit(rehearsal(job_id="j1"))
    await bus.verdict("j1")
    assert (await bus.result("j1")).state is State.COMPLETED


async def test_event_without_measure_is_not_shown_to_who_watches(bus: Bus, running: Fleet) -> None:
    await bus.connection.publish(bus.grammar.progress("j1"), b'{"job_id":"j1","x":"' + b"x" * 500_000 + b'"}')
    await bus.submit(rehearsal(job_id="j1"))
    await bus.verdict("j1")
    assert [event async for event in bus.watch("j1")][-1].state is State.COMPLETED


async def test_submission_without_measure_is_refused_and_its_record_stays_small(
    bus: Bus, fleet: Fleet
) -> None:
    await fleet.scheduler()
    await send(bus, "submit", "j1", padded(rehearsal(job_id="j1"), 900_000))
    await until_read(bus)
    record = await bus.status("j1")
    assert record.result is not None
    assert record.result.error is not None
    assert record.result.error.message == "$: the job has 900000 bytes; 262144 are allowed"
    assert len(encode(record)) < 4096


@pytest.mark.parametrize("fails", [None, "TOOL_FAILED"])
async def test_what_an_attempt_says_of_itself_is_cut_to_what_a_record_holds(
    bus: Bus, running: Fleet, fails: str | None
) -> None:
    """A guest with a say in it cannot keep its job from ending."""
    spec = rehearsal(job_id="j1", boast_bytes=2 * MAX_PAYLOAD_BYTES, fail=fails)
    await bus.submit(spec)
    await bus.verdict("j1")
    with anyio.fail_after(30):
        record = await bus.result("j1")
    assert record.state is (State.FAILED if fails else State.COMPLETED)
    assert record.result is not None
    facts: Any = record.result.error.details if record.result.error else record.result.summary
    assert facts == {"dropped": f"more than {MAX_FACTS_BYTES} bytes"}
    assert len(record.result.warnings) <= MAX_WARNINGS + 1
    assert len(record.transitions[-1].reason or "") < 2 * MAX_WORDS
    events = [event async for event in bus.watch("j1")]
    assert max(len(event.message) for event in events) <= MAX_WORDS + 3


def flooding(out: Path, mib: int) -> JobSpec:
    spec = rehearsal(job_id="flood", flood_mib=mib)
    return msgspec.structs.replace(spec, artifacts=ArtifactPolicy(output_path=str(out), log_upload=True))


async def test_flood_of_output_leaves_a_bounded_log_and_others_go_on(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    await bus.submit(flooding(tmp_path, 96))
    await bus.verdict("flood")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    others = [each async for each in bus.submit_many(rehearsal(job_id=f"other-{n}") for n in range(20))]
    with anyio.fail_after(60):
        assert {each.state async for each in bus.results(others)} == {State.COMPLETED}
        assert (await bus.result("flood")).state is State.COMPLETED
    assert (tmp_path / "flood.log").stat().st_size < LOG_BYTES
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 64
