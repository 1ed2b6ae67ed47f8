"""What an attempt says of itself, cut to what a record can hold: guests and tools have a say in it."""

from collections.abc import Iterable
from typing import Any, Final

from h2kbus.redaction import PLAIN, Redactor
from subjects.codec import encode
from subjects.spec import MAX_PARAMETER_DEPTH, is_deeper
from workers.joblog import encodable

MAX_WORDS: Final = 2000
"""Characters of one sentence."""
MAX_WARNINGS: Final = 100
MAX_FACTS_BYTES: Final = 64 * 1024
"""An error's details and a summary are kept for each attempt, in a record of at most 1 MiB."""


def words(text: str, redactor: Redactor = PLAIN) -> str:
    """A sentence of a bounded length, without secrets, in characters that UTF-8 can hold."""
    # Cut before it is looked through: some guests and tools say very much.
    text = redactor.text(str(encodable(text[: 2 * MAX_WORDS])))
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}..."


def warnings(texts: Iterable[str], redactor: Redactor = PLAIN) -> tuple[str, ...]:
    """The first of them; the last one tells how many there are more."""
    said = list(texts)
    found = [words(each, redactor) for each in said[:MAX_WARNINGS]]
    more = len(said) - MAX_WARNINGS
    return (*found, f"{more} more warnings") if more > 0 else tuple(found)


def facts(found: dict[str, Any], redactor: Redactor = PLAIN) -> dict[str, Any]:
    """What was found out, without secrets, unless no reader would take the record with it."""
    if is_deeper(found, MAX_PARAMETER_DEPTH):
        return {"dropped": f"nested deeper than {MAX_PARAMETER_DEPTH} levels"}
    plain: dict[str, Any] = encodable(found)
    if len(encode(plain)) > MAX_FACTS_BYTES:
        return {"dropped": f"more than {MAX_FACTS_BYTES} bytes"}
    told: dict[str, Any] = redactor.value(plain)
    return told
