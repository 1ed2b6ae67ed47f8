"""JSON that a tool said. What it says comes from hostile images, so it may be anything."""

from typing import TypeVar

from h2kbus.errors import ErrorCode, InvalidMessage, OperationFailed
from subjects.codec import decode
from workers.joblog import printable

T = TypeVar("T")
_SHOWN_CHARS = 500


def tool_json(kind: type[T], data: bytes, tool: str) -> T:
    """Read what `tool` said as this kind of message. Raises TOOL_FAILED for whatever is none."""
    try:
        return decode(kind, data)
    except InvalidMessage as error:
        words = printable(str(error))[:_SHOWN_CHARS]
        message = f"{tool} gave an answer that cannot be read: {words}"
        raise OperationFailed(ErrorCode.TOOL_FAILED, message, tool=tool) from error
