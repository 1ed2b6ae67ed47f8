"""What an image's own header says, in the terms that all formats share."""

import os
from typing import Any

import msgspec

from subjects.codes import ErrorCode
from subjects.spec import ImageFormat

SECTOR = 512


class Finding(msgspec.Struct, frozen=True):
    """Why an image must not be given to a tool, or cannot be whole.

    `unless` is the parameter by which a job may allow it all the same.
    """

    code: ErrorCode
    reason: str
    unless: str | None = None

    @property
    def words(self) -> str:
        """The reason, with the way out if there is one."""
        return self.reason if self.unless is None else f"{self.reason} (parameters.{self.unless} allows it)"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of an image's header, read without any tool.

    `virtual_size` is in bytes, None if only a tool can tell. `backing` is the name of the file that
    the image builds on, and `backing_format` what it says of that file's format, as qemu calls formats.
    `extents` are the names of further files that hold its content.
    """

    format: ImageFormat
    variant: str | None = None
    virtual_size: int | None = None
    backing: str | None = None
    backing_format: str | None = None
    extents: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: dict[str, Any] = {}


class Refused(Exception):
    """Raised where a file is refused before it has a header that the finding could stand in."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.reason)
        self.finding = finding


class Window(msgspec.Struct, frozen=True):
    """A part of a file, in bytes."""

    offset: int
    size: int


class ImageBytes:
    """Reads ranges of an open file; what lies beyond its end is simply missing from the answer.

    With a window, the file is only what lies within it.
    """

    def __init__(self, descriptor: int, window: Window | None = None) -> None:
        self._descriptor = descriptor
        self._start = window.offset if window else 0
        self.size = window.size if window else os.fstat(descriptor).st_size

    def at(self, offset: int, length: int) -> bytes:
        if not 0 <= offset < self.size:
            return b""
        return os.pread(self._descriptor, min(length, self.size - offset), self._start + offset)


def unsafe(reason: str, unless: str | None = None) -> Finding:
    """The finding for an image that no tool may open, unless the job allows it by that parameter."""
    return Finding(ErrorCode.IMAGE_UNSAFE, reason, unless)


def corrupt(reason: str) -> Finding:
    """The finding for an image that is damaged."""
    return Finding(ErrorCode.IMAGE_CORRUPT, reason)


def cut_short(needed: int, size: int) -> Finding:
    """The finding for an image whose header points beyond the end of the file."""
    return corrupt(f"the image is cut short: it refers to byte {needed} of a file of {size} bytes")
