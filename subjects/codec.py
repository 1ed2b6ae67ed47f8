"""JSON in and out, with the path of the offending field in every refusal."""

import functools
import re
from collections.abc import Hashable
from itertools import accumulate
from typing import Any, Final, TypeVar

import msgspec

from subjects.codes import InvalidMessage
from subjects.sizes import MAX_BYTES
from subjects.spec import is_deeper

T = TypeVar("T")

MAX_DEPTH: Final = 64
"""Levels of nesting in a message. Without a bound one reader's stack takes what another's does not."""

# Possessive, and content with a string that never ends: no input makes the scan start over.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))

encode = msgspec.json.Encoder().encode
"""Encode any message of the contract as compact UTF-8 JSON."""


@functools.cache
def _decoder(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(kind: type[T], data: bytes) -> T:
    """Decode one message; raises InvalidMessage with the JSON path for anything that does not fit.

    Unknown fields are ignored; wrong types, values out of range, broken JSON, bad UTF-8, more than
    MAX_DEPTH levels and more bytes than the kind may have are not.
    """
    most = MAX_BYTES.get(kind)
    if most is not None and len(data) > most:
        raise InvalidMessage(f"the message has {len(data)} bytes; {most} are allowed")
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise InvalidMessage(f"nested deeper than {MAX_DEPTH} levels")
    try:
        key: Any = kind
        message: T = _decoder(key).decode(data)
    except msgspec.ValidationError as error:
        raise InvalidMessage.under("$", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMessage(f"not valid JSON: {error}") from None
    return message


def convert(kind: type[T], value: Any, base: str = "$") -> T:
    """Like `decode`, for a document that another parser has read already (YAML, command line).

    `base` is the JSON path of the value in its own document.
    """
    if is_deeper(value, MAX_DEPTH):
        raise InvalidMessage(f"nested deeper than {MAX_DEPTH} levels", base)
    key: Any = kind
    try:
        message: T = msgspec.convert({"_": value}, _box(key))._
    except msgspec.ValidationError as error:
        words, _, place = str(error).rpartition("`$._")
        raise InvalidMessage.under(base, f"{words}`${place}") from None
    return message


@functools.cache
def _box(kind: Hashable) -> Any:
    """In a box nothing stands at the root, of which msgspec names no place: then a key could forge one.

    A struct, since msgspec works out what any other type asks for each time anew.
    """
    return msgspec.defstruct("Box", [("_", kind)])


def _depth(data: bytes) -> int:
    """How deep the brackets outside of strings go."""
    steps = _STRINGS.sub(b"", data).translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)
