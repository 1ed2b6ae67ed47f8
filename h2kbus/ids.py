"""Job ids for submitters who leave them out: unique, and sortable by the time they were made."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_job_id() -> str:
    """20 characters: milliseconds since 1970 in 10 (Crockford base 32), then 50 random bits."""
    return _base32(time.time_ns() // 1_000_000, 10) + _base32(secrets.randbits(50), 10)


def _base32(number: int, width: int) -> str:
    return "".join(_ALPHABET[(number >> 5 * place) & 31] for place in reversed(range(width)))
