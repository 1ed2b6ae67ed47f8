"""Keys as NATS users have them (nkeys), what they sign, and whether a signature is genuine.

Seeds and public keys are base32 texts with a checksum: a prefix that says what they are, 32 bytes, CRC-16.
"""

import base64
import binascii
import datetime as dt
import os
import re
import secrets
from pathlib import Path
from typing import Final

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from h2kbus.errors import InvalidMessage, SettingsError
from h2kbus.settings import ConnectionSettings
from subjects.canonical import signed_bytes
from subjects.codec import decode, encode
from subjects.manifest import Manifest
from subjects.signature import SIGNATURE_DAYS, Signature
from subjects.spec import JobSpec

_PUBLIC: Final = bytes([20 << 3])
_SEED: Final = bytes([(18 << 3) | (20 >> 2), 0])
_SEED_TEXT: Final = re.compile(r"\bSU[A-Z2-7]{56}\b")
_RAW_BYTES: Final = 32
_LONGEST_FILE: Final = 1 << 20


class Signer:
    """Signs jobs and manifests with the seed of a NATS user."""

    def __init__(self, seed: str) -> None:
        """Raises SettingsError for what is no such seed; the message does not quote it."""
        raw = _decoded(seed, _SEED)
        if raw is None:
            raise SettingsError("this is no seed of a NATS user: it has 58 characters and begins with SU")
        self._key = SigningKey(raw)
        self.public_key = _encoded(_PUBLIC, bytes(self._key.verify_key))

    @classmethod
    def of(cls, settings: ConnectionSettings) -> "Signer | None":
        """With the key that one connects with; None for those who connect without. Raises SettingsError."""
        file = settings.nkey or settings.creds
        found = _SEED_TEXT.search(_read(Path(file))) if file else None
        return cls(found[0]) if found else None

    @classmethod
    def from_file(cls, file: Path) -> "Signer":
        """The seed that stands alone in a file, as `h2kbus keys new` writes it. Raises SettingsError."""
        words = _read(file).split()
        if len(words) != 1:
            raise SettingsError(f"{file} does not hold one seed and nothing else")
        return cls(words[0])

    def sign(self, spec: JobSpec, root: str) -> JobSpec:
        """The job with a signature for the fleet under this root, which its id and time are part of.

        Raises InvalidMessage for a job that cannot be signed.
        """
        latest = (spec.created_at or dt.datetime.now(dt.UTC)) + dt.timedelta(days=SIGNATURE_DAYS)
        if spec.execution_policy.not_before is not None and spec.execution_policy.not_before > latest:
            reason = f"a signature is good for {SIGNATURE_DAYS} days: sign the job when its time is closer"
            raise InvalidMessage(reason, "$.execution_policy.not_before")
        # As a reader sees it: what JSON cannot carry is not signed as it was.
        told = decode(JobSpec, encode(msgspec.structs.replace(spec, signature=None)))
        return msgspec.structs.replace(told, signature=self._signature(told, root))

    def sign_manifest(self, manifest: Manifest, root: str) -> Manifest:
        """The manifest with a signature. Raises InvalidMessage for one that cannot be signed."""
        told = decode(Manifest, encode(msgspec.structs.replace(manifest, signature=None)))
        return msgspec.structs.replace(told, signature=self._signature(told, root))

    def _signature(self, message: JobSpec | Manifest, root: str) -> Signature:
        value = self._key.sign(signed_bytes(message, root)).signature
        return Signature(key=self.public_key, value=value)

    def sign_again(self, spec: JobSpec, job_id: str, new_id: str, root: str) -> JobSpec:
        """A job that this key has signed under `job_id`, as a new one of now.

        Raises InvalidMessage unless it is exactly as it was signed: others write the record it comes from.
        """
        own = spec.signature is not None and spec.signature.key == self.public_key
        if not own or spec.job_id != job_id or not is_genuine(spec, root):
            reason = f"job {job_id} is not as your key has signed it: submit it from its document"
            raise InvalidMessage(reason, "$.signature")
        now = dt.datetime.now(dt.UTC)
        return self.sign(msgspec.structs.replace(spec, job_id=new_id, created_at=now), root)


def is_genuine(message: JobSpec | Manifest, root: str) -> bool:
    """Whether the signature of a job or a manifest is over it as it is, by the key that it names."""
    if message.signature is None:
        return False
    raw = _decoded(message.signature.key, _PUBLIC)
    if raw is None:
        return False
    try:
        VerifyKey(raw).verify(signed_bytes(message, root), message.signature.value)
    except (BadSignatureError, InvalidMessage):
        return False
    return True


def new_seed() -> str:
    """A seed of a new key."""
    return _encoded(_SEED, secrets.token_bytes(_RAW_BYTES))


def write_seed(file: Path, seed: str) -> None:
    """Write a seed into a new file that only its owner may read. Raises SettingsError for one that exists."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{seed}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SettingsError(f"{file} cannot be made: {error.strerror}") from None


def read_public_keys(file: Path) -> frozenset[str]:
    """The keys to trust: one on a line; what follows a `#` is a comment.

    Raises SettingsError for a file that cannot be read, has no key, or has something else.
    """
    keys = []
    for number, line in enumerate(_read(file).splitlines(), 1):
        key = line.partition("#")[0].strip()
        if key and _decoded(key, _PUBLIC) is None:
            raise SettingsError(f"{file}:{number} is no public key of a NATS user, which begins with U")
        keys += [key] if key else []
    if not keys:
        raise SettingsError(f"{file} has no key in it: no job could be executed")
    return frozenset(keys)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(_LONGEST_FILE).decode()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{file} is no text") from None


def _encoded(prefix: bytes, raw: bytes) -> str:
    body = prefix + raw
    return base64.b32encode(body + _checksum(body)).decode().rstrip("=")


def _decoded(text: str, prefix: bytes) -> bytes | None:
    """The 32 bytes behind a text; None unless prefix and checksum are right."""
    try:
        body = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        return None
    raw = body[len(prefix) : -2]
    fits = body.startswith(prefix) and len(raw) == _RAW_BYTES and _checksum(body[:-2]) == body[-2:]
    return raw if fits else None


def _checksum(body: bytes) -> bytes:
    return binascii.crc_hqx(body, 0).to_bytes(2, "little")
