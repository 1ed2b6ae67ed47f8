"""dead ls, show, requeue: what nobody could handle can be seen, and sent again."""

import json
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest

import h2kbus
from h2kbus.client import Bus
from h2kbus.dead import DeadLetters, NumberedLetter
from h2kbus.errors import DuplicateJob, InvalidMessage, InvalidSubject, JobNotFound
from subjects.codec import encode
from subjects.states import State
from tests.conftest import Fleet, Program, rehearsal

pytestmark = pytest.mark.anyio


async def only_letter(bus: Bus) -> NumberedLetter:
    with anyio.fail_after(10):
        while not (found := [each async for each in DeadLetters(bus).read()]):
            await anyio.sleep(0.02)
    [letter] = found
    return letter


async def buried(bus: Bus, job_id: str, body: bytes, verb: str = "submit") -> NumberedLetter:
    await bus.connection.publish(f"{bus.grammar.root}.commands.tester.{verb}.{job_id}", body)
    return await only_letter(bus)


async def test_corrected_job_runs_under_a_new_id(bus: Bus, running: Fleet) -> None:
    letter = await buried(bus, "bad", b'{"operation": "levitate"}')
    subject = await DeadLetters(bus).requeue(letter.number, encode(rehearsal(job_id="bad")))
    new_id = subject.rsplit(".", 1)[-1]
    await bus.verdict(new_id)
    assert new_id != "bad"
    assert (await bus.result(new_id)).state is State.COMPLETED
    assert [each async for each in DeadLetters(bus).read()] == []


async def test_job_whose_id_was_taken_runs_under_a_new_one(bus: Bus, running: Fleet) -> None:
    await bus.result(await bus.submit(rehearsal(job_id="taken")))
    letter = await buried(bus, "taken", encode(rehearsal(job_id="taken", seconds=0.1)))
    assert letter.letter.reason == "duplicate-id"
    new_id = (await DeadLetters(bus).requeue(letter.number)).rsplit(".", 1)[-1]
    await bus.verdict(new_id)
    assert (await bus.result(new_id)).state is State.COMPLETED


async def test_job_that_could_not_be_read_goes_back_to_its_lane(bus: Bus, running: Fleet) -> None:
    await bus.result(await bus.submit(rehearsal()))
    subject = bus.grammar.job("default", "op-rehearse", 5, "unreadable")
    await bus.connection.publish(subject, b"{")
    letter = await only_letter(bus)
    assert await DeadLetters(bus).requeue(letter.number) == subject
    assert (await only_letter(bus)).number != letter.number


async def test_letter_that_was_cut_needs_the_whole_message(bus: Bus, running: Fleet) -> None:
    letter = await buried(bus, "large", b"x" * 600_000)
    with pytest.raises(InvalidMessage, match="only a part"):
        await DeadLetters(bus).requeue(letter.number)


async def test_original_that_was_nothing_of_ours_is_refused(bus: Bus, running: Fleet) -> None:
    letter = await buried(bus, "j1", b"", verb="explode")
    with pytest.raises(InvalidSubject, match="unknown verb"):
        await DeadLetters(bus).requeue(letter.number)
    assert (await only_letter(bus)).number == letter.number


async def test_requeueing_twice_makes_one_job(
    bus: Bus, running: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letter's removal got lost the first time."""
    await bus.result(await bus.submit(rehearsal(job_id="taken")))
    letter = await buried(bus, "taken", encode(rehearsal(job_id="taken", seconds=0.1)))
    with monkeypatch.context() as patch:
        patch.setattr(DeadLetters, "_remove", never)
        first = await DeadLetters(bus).requeue(letter.number)
    await bus.verdict(first.rsplit(".", 1)[-1])
    assert (await DeadLetters(bus).get(letter.number)).number == letter.number
    again = await DeadLetters(bus).requeue(letter.number)
    assert first.rsplit(".", 1)[-1] == again.rsplit(".", 1)[-1]


async def never(*_: object) -> None:
    """Does nothing."""


async def test_letter_is_kept_while_another_message_waits_under_its_subject(bus: Bus, fleet: Fleet) -> None:
    drain = await fleet.scheduler()
    letter = await buried(bus, "j1", b"{", verb="cancel")
    drain()
    command = f"{bus.grammar.root}.commands.tester.cancel.j1"
    # The letter is there a moment before the message that it is about has gone.
    with anyio.fail_after(10):
        while await bus.connection.get_last(bus.topology.commands_stream, command) is not None:
            await anyio.sleep(0.01)
    await bus.connection.publish(command, b"{}")
    with pytest.raises(DuplicateJob, match="another message waits"):
        await DeadLetters(bus).requeue(letter.number)
    assert (await only_letter(bus)).number == letter.number


async def test_what_is_no_letter_is_left_out(bus: Bus, running: Fleet) -> None:
    await bus.connection.publish(bus.grammar.dead("junk", "j1"), b"\x00")
    assert (await buried(bus, "bad", b"{")).letter.reason == "invalid-spec"


@pytest.mark.parametrize("wrong", ["a.b", ">", "a b", ""])
async def test_reason_that_no_letter_can_have_is_refused(bus: Bus, running: Fleet, wrong: str) -> None:
    with pytest.raises(InvalidSubject):
        await anext(DeadLetters(bus).read(reason=wrong))


async def test_number_that_no_letter_has_is_named(bus: Bus, running: Fleet) -> None:
    with pytest.raises(JobNotFound, match="number 7"):
        await DeadLetters(bus).get(7)


async def test_letters_are_chosen_by_reason_and_job(bus: Bus, running: Fleet) -> None:
    for job_id in ("a", "b"):
        await bus.connection.publish(f"{bus.grammar.root}.commands.tester.submit.{job_id}", b"{")
    await bus.connection.publish(f"{bus.grammar.root}.commands.tester.explode.a", b"{")
    with anyio.fail_after(10):
        while len([each async for each in DeadLetters(bus).read()]) < 3:
            await anyio.sleep(0.02)
    chosen = [each async for each in DeadLetters(bus).read(reason="invalid-spec", job_id="a")]
    assert [(each.letter.reason, each.job_id) for each in chosen] == [("invalid-spec", "a")]


@pytest.fixture
def number(local: Program, tmp_path: Path) -> int:
    """A job that was refused: its submission is a dead letter."""
    bad = {**json.loads(encode(rehearsal(job_id=tmp_path.name[:60]))), "priority": 99, "pool": "no.pool"}
    subject = f"h2k.v1.commands.tester.submit.{tmp_path.name[:60]}"
    publish(local, subject, json.dumps(bad).encode())
    while True:
        found = [json.loads(line) for line in local("dead", "ls", "--json").stdout.splitlines()]
        mine = [each["number"] for each in found if each["letter"]["subject"] == subject]
        if mine:
            return int(mine[-1])


def publish(local: Program, subject: str, body: bytes) -> None:
    async def send() -> None:
        async with h2kbus.connect(settings=local.settings()) as bus:
            await bus.connection.publish(subject, body)

    anyio.run(send)


@pytest.mark.slow
def test_list_shows_number_reason_and_message(local: Program, number: int) -> None:
    shown = local("dead", "ls", "--reason", "invalid-spec").stdout
    [line] = [line for line in shown.splitlines() if line.startswith(f"{number} ")]
    assert "invalid-spec" in line
    assert "$.pool" in line


def test_letter_is_shown_with_its_original(local: Program, number: int) -> None:
    shown = local("dead", "show", number).stdout
    assert "reason:    invalid-spec" in shown
    assert '"pool": "no.pool"' in shown


def test_corrected_file_is_sent_in_the_originals_place(local: Program, number: int, tmp_path: Path) -> None:
    corrected = tmp_path / "corrected.json"
    corrected.write_bytes(encode(rehearsal()))
    done = local("dead", "requeue", number, "--data", corrected)
    assert done.returncode == 0, done.stderr
    assert local("watch", done.stdout.strip()).returncode == 0


@pytest.mark.parametrize("words", [("show", "999999"), ("requeue", "999999")])
def test_unknown_number_is_one_sentence_and_exit_4(local: Program, words: tuple[str, ...]) -> None:
    done: subprocess.CompletedProcess[Any] = local("dead", *words)
    assert done.returncode == 4
    assert "no dead letter has the number 999999" in done.stderr


def test_one_file_for_two_letters_is_refused(local: Program, tmp_path: Path) -> None:
    done = local("dead", "requeue", 1, 2, "--data", tmp_path / "x")
    assert done.returncode == 2
    assert "give one number" in done.stderr
