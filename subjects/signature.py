"""A job's signature as it travels: inside of the job, and not part of what it signs.

What it signs is defined in `subjects.canonical`; making and checking one is `h2kbus.signing`'s business.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

PublicKey = Annotated[
    str, Meta(pattern=r"^U[A-Z2-7]{55}$(?!\n)", description="Public key of a NATS user (nkey)")
]

SIGNATURE_DAYS: Final = 29
"""How old a signature may be when its job goes to its lane. A record lives on for 30 days after the job's
end, so that no signature outlives the record which makes a replay of it a no-op."""
AHEAD_DAYS: Final = 1
"""How far the signer's clock may be ahead of the server's: the day that the two lives differ by."""


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """An ed25519 signature over a job, by the holder of `key`. `value` is its 64 bytes as base64."""

    key: PublicKey
    value: Annotated[bytes, Meta(min_length=64, max_length=64)]
