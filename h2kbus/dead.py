"""Dead letters: messages that nobody could handle, kept with the reason, and the way back for them."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from h2kbus.client import Bus
from h2kbus.errors import InvalidMessage, InvalidSubject, JobNotFound, SubjectTaken
from h2kbus.ids import new_job_id
from h2kbus.journal import KEPT_BYTES
from subjects.codec import decode
from subjects.commands import Verb
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
        """Letters with this reason and about this job, oldest first; `since` is RFC 3339."""
        subject = f"{self._bus.grammar.root}.dead.{reason}.{job_id}"
        async for stored in self._bus.connection.read(self._stream, subject, since=since):
            letter = decode(DeadLetter, stored.data)
            yield NumberedLetter(number=stored.seq, job_id=_last(stored.subject), letter=letter)

    async def get(self, number: int) -> NumberedLetter:
        """The letter with this number. Raises JobNotFound."""
        subject = f"{self._bus.grammar.root}.dead.*.*"
        async for stored in self._bus.connection.read(self._stream, subject, after=number - 1):
            if stored.seq != number:
                break
            letter = decode(DeadLetter, stored.data)
            return NumberedLetter(number=number, job_id=_last(stored.subject), letter=letter)
        raise JobNotFound(f"no dead letter has the number {number}")

    async def requeue(self, number: int, data: bytes | None = None) -> str:
        """Send the original again, or `data` in its place; returns the subject that it was sent to.

        A submission whose id is taken by now gets a new one. The letter is removed once the bus has
        stored the message; a subject that has one already is as good. Raises JobNotFound,
        InvalidSubject for an original that was neither a command nor a job, and InvalidMessage for one
        of which only a part was kept.
        """
        found = await self.get(number)
        letter = found.letter
        if data is None and len(letter.data) >= KEPT_BYTES:
            raise InvalidMessage("only a part of the original was kept: give the whole message", "$.data")
        subject, body = await self._address(letter.subject, letter.data if data is None else data)
        with contextlib.suppress(SubjectTaken):
            await self._bus.connection.publish(subject, body)
        body_of_deletion = {"seq": number, "no_erase": True}
        await self._bus.connection.api(f"STREAM.MSG.DELETE.{self._stream}", body_of_deletion)
        return subject

    async def _address(self, subject: str, body: bytes) -> tuple[str, bytes]:
        grammar = self._bus.grammar
        with contextlib.suppress(InvalidSubject):
            grammar.parse_job(subject)
            return subject, body
        command = grammar.parse_command(subject)
        if command.verb is not Verb.SUBMIT or await self._bus.store.find(command.job_id) is None:
            return subject, body
        new_id = new_job_id()
        return grammar.command(command.submitter, Verb.SUBMIT, new_id), _renamed(body, new_id)


def _renamed(body: bytes, job_id: str) -> bytes:
    """The same job under another id. Raises InvalidMessage for what is no JSON object."""
    document = decode(dict[str, Any], body)
    return msgspec.json.encode({**document, "job_id": job_id})


def _last(subject: str) -> str:
    return subject.rsplit(".", 1)[-1]
