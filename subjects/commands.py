"""What a client asks of the scheduler. The verb and the job's id stand in the subject."""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from subjects.signature import Signature
from subjects.spec import JobId, Timestamp, keep_utc


class Verb(enum.StrEnum):
    """The payload of `submit` is a JobSpec itself, so that any client can publish a v1 document."""

    SUBMIT = "submit"
    CANCEL = "cancel"
    RETRY = "retry"


class CancelCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Stop the job, wherever it is."""

    reason: Annotated[str, Meta(max_length=1024)] = ""


class RetryCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Run the finished job `parent` again, under the id in the command's subject.

    `signature` is over the parent's job under that id, created at `created_at`: the parent's own does not
    fit.
    """

    parent: JobId
    created_at: Timestamp | None = None
    signature: Signature | None = None

    def __post_init__(self) -> None:
        keep_utc(self, "created_at")
