"""What reading gives, and where it stood."""

import os
from typing import Any

import msgspec

from h2kbus.errors import InvalidMessage
from subjects.spec import JobSpec


class Defaults(msgspec.Struct, frozen=True):
    """What the submitter says once for every document that does not say it itself."""

    requested_by: str
    output_dir: str | None = None


class Document(msgspec.Struct, frozen=True):
    """One job, where it stood (`jobs.jsonl:17`), and what of its document had no effect."""

    spec: JobSpec
    origin: str
    warnings: tuple[str, ...] = ()


class Place(msgspec.Struct, frozen=True):
    """Where a value stands: its name in messages, and the directory of its relative paths."""

    origin: str
    directory: str

    def inner(self, suffix: str) -> "Place":
        """A part of this place, such as `[3]` or `:disks[0]`."""
        return Place(self.origin + suffix, self.directory)

    def absolute(self, path: Any) -> Any:
        """The path as seen from the working directory; what is no path is left for its type to refuse."""
        if not isinstance(path, str) or not path or path.startswith("/"):
            return path
        return os.path.normpath(os.path.join(self.directory, path))  # noqa: PTH118 - a string of the document


def located(error: InvalidMessage, origin: str) -> InvalidMessage:
    """The same error with the document's name in its words; one that has a name keeps it."""
    if "origin" in error.details:
        return error
    named = InvalidMessage(f"{error.reason} (in {origin})", error.path)
    named.details["origin"] = origin
    return named
