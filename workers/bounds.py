"""What an attempt says of itself, cut to what a record can hold: guests and tools have a say in it."""

from collections.abc import Iterable
from typing import Any, Final

from subjects.codec import encode
from subjects.spec import MAX_PARAMETER_DEPTH, is_deeper
from workers.joblog import encodable

MAX_WORDS: Final = 2000
"""Characters of one sentence."""
MAX_WARNINGS: Final = 100
MAX_FACTS_BYTES: Final = 64 * 1024
"""An error's details and a summary are kept for each attempt, in a record of at most 1 MiB."""


def words(text: str) -> str:
    """A sentence of a bounded length, in characters that UTF-8 can hold."""
    text = str(encodable(text))
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}..."


def warnings(texts: Iterable[str]) -> tuple[str, ...]:
    """The first of them; the last one tells how many there are more."""
    found = [words(each) for each in texts]
    more = len(found) - MAX_WARNINGS
    return (*found[:MAX_WARNINGS], f"{more} more warnings") if more > 0 else tuple(found)


def facts(found: dict[str, Any]) -> dict[str, Any]:
    """What was found out, unless no reader would take the record with it."""
    if is_deeper(found, MAX_PARAMETER_DEPTH):
        return {"dropped": f"nested deeper than {MAX_PARAMETER_DEPTH} levels"}
    plain: dict[str, Any] = encodable(found)
    if len(encode(plain)) > MAX_FACTS_BYTES:
        return {"dropped": f"more than {MAX_FACTS_BYTES} bytes"}
    return plain
