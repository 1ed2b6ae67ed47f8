"""JSON in and out, with the path of the offending field in every refusal."""

import functools
from collections.abc import Hashable
from typing import Any, TypeVar

import msgspec

from subjects.codes import InvalidMessage

T = TypeVar("T")

encode = msgspec.json.Encoder().encode
"""Encode any message of the contract as compact UTF-8 JSON."""


@functools.cache
def _decoder(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(kind: type[T], data: bytes) -> T:
    """Decode one message; raises InvalidMessage with the JSON path for anything that does not fit.

    Unknown fields are ignored; wrong types, values out of range, broken JSON and bad UTF-8 are not.
    """
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
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidMessage.under("$", str(error)) from None
