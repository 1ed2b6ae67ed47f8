"""What the server's answers mean: acknowledgements, stored messages, and JetStream's numeric errors."""

import re
from typing import Any, Final

import msgspec
from nats.aio.msg import Msg

from h2kbus.errors import BusError, BusFull, NotProvisioned, RevisionConflict, SubjectTaken

# A lost compare-and-set is 10071, or 10164 on replicated streams.
_CONFLICTS: Final = frozenset({10071, 10164})
# The server could not store a message: the stream is full, or the subject has its one message already.
_STORE_FAILED: Final = 10077
_PER_SUBJECT: Final = "per subject"
_SEQUENCE: Final = re.compile(r"[0-9]{1,20}")
_FULL: Final = frozenset({10002, 10023, 10047, 10077, 10122, 10167})


class ApiError(msgspec.Struct, frozen=True):
    """What the JetStream API says when it refuses; `err_code` is the precise one."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """JetStream's answer to a publish."""

    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


class Stored(msgspec.Struct, frozen=True):
    """A message as it lies in a stream. `seq` is its sequence: for a bucket, the key's revision."""

    subject: str
    seq: int
    data: bytes
    time: str


class Batch(msgspec.Struct, frozen=True):
    """What one direct get brought, and whether the stream held more under its filter at the end of it."""

    messages: list[Stored]
    has_more: bool


_ACK: Final = msgspec.json.Decoder(PubAck)
_REPLY: Final = msgspec.json.Decoder(dict[str, Any])
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for what is no JSON, not UTF-8, or nested deeper than a stack goes."""


def error_of(problem: ApiError, subject: str) -> BusError:
    """Map JetStream's numeric codes. Only where one code has two meanings are its words read."""
    if problem.err_code in _CONFLICTS:
        return RevisionConflict(f"{subject} was changed by somebody else")
    if problem.err_code == _STORE_FAILED and _PER_SUBJECT in problem.description:
        return SubjectTaken(f"{subject} holds a message already")
    if problem.err_code in _FULL:
        return BusFull(f"{subject}: {problem.description}")
    words = f"{subject}: {problem.description} ({problem.err_code or problem.code})"
    return BusError(words, err_code=problem.err_code)


def sequence_of(subject: str, answer: Msg) -> int:
    """The sequence under which a publish was stored; raises what the server said instead."""
    if not answer.data:
        raise NotProvisioned(f"this server has no stream for {subject}")
    try:
        ack = _ACK.decode(answer.data)
    except _UNREADABLE as error:
        raise BusError(f"the answer to {subject} cannot be read: {error}") from None
    if ack.error is not None:
        raise error_of(ack.error, subject)
    return ack.seq


def reply_of(name: str, answer: Msg) -> dict[str, Any]:
    """What the JetStream API said to a call, its errors included. Raises BusError for what is no answer."""
    try:
        return _REPLY.decode(answer.data)
    except _UNREADABLE as error:
        raise BusError(f"the answer to {name} cannot be read: {error}") from None


def problem_of(name: str, reply: dict[str, Any]) -> ApiError | None:
    """The error in what the JetStream API said, if there is one. Raises BusError like `reply_of`."""
    try:
        return msgspec.convert(reply["error"], ApiError) if "error" in reply else None
    except msgspec.ValidationError as error:
        raise BusError(f"the answer to {name} cannot be read: {error}") from None


def outcome_of(subject: str, answer: Msg | BusError) -> int | BusError:
    """Like `sequence_of`, with the error as a value."""
    try:
        if isinstance(answer, BusError):
            return answer
        return sequence_of(subject, answer)
    except BusError as error:
        return error


def status_of(message: Msg) -> str | None:
    """The status of a JetStream control message, None for an ordinary one."""
    return (message.headers or {}).get("Status")


def has_more(end: Msg) -> bool:
    """Whether there may be more to read; the server says so at the end of a batch."""
    return (end.headers or {}).get("Nats-Num-Pending") != "0"


def found_in(stream: str, answer: Msg) -> Stored | None:
    """What a direct get by name brought; None when there is nothing under that name."""
    status = status_of(answer)
    if status == "503":
        raise NotProvisioned(f"this server has no stream {stream}")
    return None if status == "404" else stored(answer)


def stored(message: Msg) -> Stored:
    """Read a direct get's answer. Raises BusError for one without a number."""
    headers = message.headers or {}
    sequence = headers.get("Nats-Sequence", "0")
    if not _SEQUENCE.fullmatch(sequence):
        raise BusError(f"a stored message has the sequence {sequence[:40]!r}")
    return Stored(
        headers.get("Nats-Subject", ""),
        int(sequence),
        message.data,
        headers.get("Nats-Time-Stamp", ""),
    )
