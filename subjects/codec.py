"""JSON in and out, with the path of the offending field in every refusal."""

import functools
import re
from collections.abc import Hashable
from typing import Any, Final, TypeVar

import msgspec

from subjects.codes import InvalidMessage
from subjects.spec import is_deeper

T = TypeVar("T")

MAX_DEPTH: Final = 64
"""Levels of nesting in a message. Without a bound one reader's stack takes what another's does not."""

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(rb"[\[\]{}]")

encode = msgspec.json.Encoder().encode
"""Encode any message of the contract as compact UTF-8 JSON."""


@functools.cache
def _decoder(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(kind: type[T], data: bytes) -> T:
    """Decode one message; raises InvalidMessage with the JSON path for anything that does not fit.

    Unknown fields are ignored; wrong types, values out of range, broken JSON, bad UTF-8 and more than
    MAX_DEPTH levels are not.
    """
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


def convert(kind: type[T], value: Any) -> T:
    """Like `decode`, for a document that another parser has read already (YAML, command line)."""
    if is_deeper(value, MAX_DEPTH):
        raise InvalidMessage(f"nested deeper than {MAX_DEPTH} levels")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidMessage.under("$", str(error)) from None


def _depth(data: bytes) -> int:
    """How deep the brackets outside of strings go."""
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub(b"", data)):
        depth += 1 if bracket[0] in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
