"""Dead letters: messages that nobody could handle, kept with the reason, and the way back for them."""

import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from h2kbus.answers import Stored
from h2kbus.client import Bus
from h2kbus.errors import (
    BusError,
    DuplicateJob,
    InvalidMessage,
    InvalidSubject,
    JobNotFound,
    SubjectTaken,
)
from h2kbus.journal import KEPT_BYTES
from subjects.codec import decode
from subjects.commands import Verb
from subjects.grammar import token
from subjects.record import DeadLetter


class NumberedLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter and its number, by which it is shown and requeued. `job_id` is the one in its subject."""

    number: int
    job_id: str
    letter: DeadLetter


class DeadLetters:
    """The dead letters of one fleet."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._stream = bus.topology.dead_stream

    async def read(
        self, *, reason: str = "*", job_id: str = "*", since: str | None = None
    ) -> AsyncIterator[NumberedLetter]:
        """Letters with this reason and about this job, oldest first; `since` is RFC 3339.

        Raises InvalidSubject for a reason or an id that no letter can have.
        """
        reason, job_id = (each if each == "*" else token(each) for each in (reason, job_id))
        subject = f"{self._bus.grammar.root}.dead.{reason}.{job_id}"
        async for stored in self._bus.connection.read(self._stream, subject, since=since):
            # Somebody else may have written there.
            with contextlib.suppress(InvalidMessage):
                yield _numbered(stored)

    async def get(self, number: int) -> NumberedLetter:
        """The letter with this number. Raises JobNotFound."""
        found = await self._bus.connection.get_batch(self._stream, {"seq": number}, size=1)
        letter = next(iter(found.messages), None)
        if letter is None or letter.seq != number:
            raise JobNotFound(f"no dead letter has the number {number}")
        return _numbered(letter)

    async def requeue(self, number: int, data: bytes | None = None) -> str:
        """Send the original again, or `data` in its place; returns the subject that it was sent to.

        A submission or a retry whose id is taken by now gets a new one, always the same for one letter,
        so that doing it twice makes one job. The letter is removed once the bus has stored the message.
        Raises JobNotFound, DuplicateJob when another message waits under the subject, InvalidSubject for
        an original that was neither a command nor a job, and InvalidMessage for one of which only a part
        was kept.
        """
        found = await self.get(number)
        letter = found.letter
        if data is None and len(letter.data) >= KEPT_BYTES:
            raise InvalidMessage("only a part of the original was kept: give the whole message", "$.data")
        subject, body = await self._address(found, letter.data if data is None else data)
        try:
            await self._bus.connection.publish(subject, body)
        except SubjectTaken:
            await self._require_same(subject, body)
        await self._remove(number)
        return subject

    async def _require_same(self, subject: str, body: bytes) -> None:
        stream = self._bus.topology.jobs_stream
        with contextlib.suppress(InvalidSubject):
            self._bus.grammar.parse_command(subject)
            stream = self._bus.topology.commands_stream
        waiting = await self._bus.connection.get_last(stream, subject)
        if waiting is not None and waiting.data != body:
            raise DuplicateJob(f"another message waits under {subject}; try again when it has been read")

    async def _remove(self, number: int) -> None:
        """Remove the letter; that somebody else has done so is as good."""
        try:
            await self._bus.connection.api(
                f"STREAM.MSG.DELETE.{self._stream}", {"seq": number, "no_erase": True}
            )
        except (BusError, KeyError):
            with contextlib.suppress(JobNotFound):
                await self.get(number)
                raise

    async def _address(self, found: NumberedLetter, body: bytes) -> tuple[str, bytes]:
        grammar, subject = self._bus.grammar, found.letter.subject
        with contextlib.suppress(InvalidSubject):
            grammar.parse_job(subject)
            return subject, body
        command = grammar.parse_command(subject)
        if command.verb is Verb.CANCEL or await self._bus.store.find(command.job_id) is None:
            return subject, body
        new_id = _id_of(found)
        renamed = _renamed(body, new_id, is_submission=command.verb is Verb.SUBMIT)
        return grammar.command(command.submitter, command.verb, new_id), renamed


def _numbered(stored: Stored) -> NumberedLetter:
    job_id = stored.subject.rsplit(".", 1)[-1]
    return NumberedLetter(number=stored.seq, job_id=job_id, letter=decode(DeadLetter, stored.data))


def _id_of(found: NumberedLetter) -> str:
    """The id that a letter's job gets if its own is taken."""
    facts = f"{found.number} {found.letter.at.isoformat()} {found.letter.subject}"
    return f"requeued-{hashlib.sha256(facts.encode()).hexdigest()[:20]}"


def _renamed(body: bytes, job_id: str, *, is_submission: bool) -> bytes:
    """The same command for another id. Raises InvalidMessage for what is no JSON object, or is signed."""
    document = decode(dict[str, Any], body)
    if document.get("signature") is not None:
        reason = "its id is taken by now, and it is signed under that id: submit or retry it anew"
        raise InvalidMessage(reason, "$.signature")
    if not is_submission:
        return body
    return msgspec.json.encode({**document, "job_id": job_id})
