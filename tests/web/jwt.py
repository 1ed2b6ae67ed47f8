"""NATS users by JWTs, as an operator's tools make them."""

import base64
import json
import secrets
import time
from typing import Any

import nkeys

UNLIMITED = dict.fromkeys(("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1) | {
    "wildcards": True
}


PREFIXES = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}


class Key:
    """A key of an operator, an account or a user, and the claims that it signs."""

    def __init__(self, kind: str) -> None:
        seed = nkeys.encode_seed(secrets.token_bytes(32), PREFIXES[kind])
        self.kind = kind
        self.seed = seed.decode()
        self._pair = nkeys.from_seed(bytearray(seed))
        self.public = self._pair.public_key.decode()

    def claims(self, about: "Key", more: dict[str, Any], *, seconds: float = 3600) -> str:
        """A JWT about a key, signed by this one, that is good for so long."""
        now = time.time()
        body = {
            "jti": secrets.token_hex(16),
            "iat": int(now),
            "exp": int(now + seconds),
            "iss": self.public,
            "sub": about.public,
            "name": about.kind,
            "nats": {"type": about.kind, "version": 2, **more},
        }
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        signed = ".".join(map(encoded, (json.dumps(head).encode(), json.dumps(body).encode())))
        return f"{signed}.{encoded(self._pair.sign(signed.encode()))}"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
