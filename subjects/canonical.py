"""The canonical form of a job or a manifest: the bytes that a signature is made over.

It is the JSON Canonicalization Scheme (RFC 8785) of what it says:

- fields of the contract only, without `signature`, and without those that have their default value;
- times in UTC as `2026-11-25T18:30:00Z`, with six digits of microseconds where these are not zero;
- integers within 2**53 - 1 of zero, as I-JSON (RFC 7493) asks for; others cannot be signed.

Before it stands a line that names its purpose and the fleet. It begins with a byte that no text has, so
that no server can have it signed as the nonce of a connection.
"""

import base64
import datetime as dt
import functools
import json
import math
from typing import Any, Final

import msgspec

from subjects.codes import InvalidMessage
from subjects.manifest import Manifest
from subjects.spec import JobSpec

LARGEST_INTEGER: Final = 2**53 - 1
_PURPOSES: Final = {JobSpec: b"\xffh2kbus job v1 ", Manifest: b"\xffh2kbus manifest v1 "}
# RFC 8785 writes numbers as ECMAScript does: plainly between these powers of ten.
_PLAIN_FROM, _PLAIN_TO = -6, 21


def signed_bytes(message: JobSpec | Manifest, root: str) -> bytes:
    """What a signature of this is made over, in the fleet under that root. Raises InvalidMessage."""
    unsigned: JobSpec | Manifest = msgspec.structs.replace(message, signature=None)
    return _PURPOSES[type(message)] + root.encode() + b"\n" + canonical(unsigned)


def canonical(message: msgspec.Struct) -> bytes:
    """The canonical form of a message. Raises InvalidMessage for a number that has none."""
    return _text(message).encode()


def _text(value: Any) -> str:
    if isinstance(value, msgspec.Struct):
        return _object(_told(value))
    if isinstance(value, dict):
        return _object(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value)
    return json.dumps(_word(value), ensure_ascii=False)


def _word(value: Any) -> Any:
    """A time and bytes as the texts that stand for them."""
    if isinstance(value, dt.datetime):
        return value.isoformat().replace("+00:00", "Z")
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _object(fields: dict[str, Any]) -> str:
    """Sorted by UTF-16 code units, as RFC 8785 asks for."""
    names = sorted(fields, key=lambda name: name.encode("utf-16-be"))
    return (
        f"{{{','.join(f'{json.dumps(name, ensure_ascii=False)}:{_text(fields[name])}' for name in names)}}}"
    )


def _told(message: msgspec.Struct) -> dict[str, Any]:
    """The fields that do not have their default value: what a reader of any version knows them by."""
    found = {name: getattr(message, name) for name, _ in _defaults(type(message))}
    return {name: found[name] for name, default in _defaults(type(message)) if found[name] != default}


@functools.cache
def _defaults(kind: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    """Each field and its default; one that is required has none that anything is equal to."""
    return tuple((field.encode_name, _default(field)) for field in msgspec.structs.fields(kind))


def _default(field: msgspec.structs.FieldInfo) -> Any:
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


def _number(value: float) -> str:
    """A number as ECMAScript writes it: the fewest digits that read back as the same double."""
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise InvalidMessage(f"what has the number {value} cannot be signed: it is above 2**53 - 1")
        return str(value)
    if not math.isfinite(value):
        raise InvalidMessage(f"what has the number {value} cannot be signed")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    return sign + _digits(*_decimal(abs(value)))


def _decimal(value: float) -> tuple[str, int]:
    """Digits and a power of ten, which make the value as 0.digits x 10**power."""
    mantissa, _, exponent = repr(value).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    power = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    return digits.rstrip("0"), power


def _digits(digits: str, power: int) -> str:
    if len(digits) <= power <= _PLAIN_TO:
        return digits.ljust(power, "0")
    if 0 < power <= _PLAIN_TO:
        return f"{digits[:power]}.{digits[power:]}"
    if _PLAIN_FROM < power <= 0:
        return f"0.{'0' * -power}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{fraction}e{power - 1:+d}"
