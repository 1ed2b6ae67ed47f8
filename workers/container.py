"""OVA archives and OVF descriptors: which bytes of which file are the disk that a job means.

A disk in an archive is read where it lies: unpacking it would cost its size in space and in time, and
would make a copy that somebody could exchange.
"""

import hashlib
import os
from contextlib import ExitStack
from pathlib import PurePath
from typing import Any, Literal, Protocol
from urllib.parse import unquote

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.formats.header import ImageBytes, Refused, Window, corrupt, unsafe
from workers.formats.ovf import (
    MAX_DESCRIPTOR_BYTES,
    MAX_MANIFEST_BYTES,
    Digest,
    PackedDisk,
    read_disks,
    read_manifest,
)
from workers.formats.tar import is_archive, read_members
from workers.regular import OpenFile, open_regular

_DESCRIPTOR_SUFFIX = ".ovf"


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Where a disk's bytes are: in a file, or in a window of it.

    `size` is that of the disk's own file in bytes; the window ends on a whole sector. `opened` are all
    files that led there, the one that the job names first. `expected` is what a manifest says.
    """

    file: OpenFile
    size: int
    opened: tuple[OpenFile, ...]
    window: Window | None = None
    container: Literal["ova", "ovf"] | None = None
    member: str | None = None
    others: tuple[str, ...] = ()
    expected: tuple[Digest, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How messages call the disk."""
        return f"{self.file.path} ({self.member})" if self.window else str(self.file.path)

    @property
    def suffix(self) -> str:
        return PurePath(self.member or self.file.path).suffix.lower()

    @property
    def bytes(self) -> ImageBytes:
        return ImageBytes(self.file.descriptor, self.window)

    @property
    def exact(self) -> Window:
        """The disk's own bytes, without what pads them."""
        return Window(self.window.offset if self.window else 0, self.size)

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of the container; nothing for an image that is in none."""
        if self.container is None:
            return {}
        verified = [each.algorithm for each in self.expected]
        return {
            "container": self.container,
            "member": self.member,
            "other_disks": list(self.others),
            "manifest": verified,
        }


class _Package(Protocol):
    """The files that belong together, by their base names."""

    kind: Literal["ova", "ovf"]

    def has(self, name: str) -> bool: ...
    def read(self, name: str, limit: int) -> bytes: ...
    def content(self, name: str) -> Content: ...


def locate(named: OpenFile, member: str | None, stack: ExitStack) -> Content:
    """Find the disk that a job means: the file itself, or `member` of the container that the file is.

    The only disk of a container need not be named. Raises OperationFailed with INVALID_SPEC (no such
    disk, or several to choose from; the message lists them), FORMAT_MISMATCH (compressed or in chunks),
    CHECKSUM_MISMATCH (of the descriptor), IMAGE_CORRUPT, IMAGE_UNSAFE, and what `open_regular` raises.
    """
    try:
        if is_archive(ImageBytes(named.descriptor)):
            archive = _Archive(named)
            return _choose(archive, archive.descriptor_name(), member)
        if named.path.suffix.lower() == _DESCRIPTOR_SUFFIX:
            return _choose(_Directory(named, stack), named.path.name, member)
    except Refused as refused:
        raise OperationFailed(refused.finding.code, f"{named.path}: {refused}") from refused
    if member is not None:
        message = f"{named.path} is neither an OVA nor an OVF: it has no disk to choose by a name"
        raise OperationFailed(ErrorCode.INVALID_SPEC, message)
    return Content(file=named, size=named.size, opened=(named,))


def _choose(package: _Package, descriptor: str, member: str | None) -> Content:
    document = package.read(descriptor, MAX_DESCRIPTOR_BYTES)
    manifest, warnings = _manifest(package, PurePath(descriptor).stem)
    _require_digests(descriptor, document, manifest.get(descriptor, ()))
    disks = read_disks(document)
    disk = _pick(disks, member)
    disk.require_readable()
    content = package.content(_stored_name(package, disk.name))
    expected = manifest.get(disk.name, manifest.get(unquote(disk.name), ()))
    if manifest and not expected:
        warnings.append(f"the manifest does not vouch for {disk.name!r}")
    if disk.size not in {None, content.size}:
        warnings.append(
            f"the descriptor says that {disk.name!r} has {disk.size} bytes, it has {content.size}"
        )
    others = tuple(each.name for each in disks if each is not disk)
    return msgspec.structs.replace(
        content, container=package.kind, others=others, expected=expected, warnings=tuple(warnings)
    )


def _pick(disks: tuple[PackedDisk, ...], member: str | None) -> PackedDisk:
    if not disks:
        raise Refused(corrupt("its descriptor names no disk that has a file"))
    chosen = [each for each in disks if member in {None, each.name, unquote(each.name)}]
    if len(chosen) == 1:
        return chosen[0]
    names = [each.name for each in disks]
    problem = f"has no disk {member!r}" if member else "has several disks, and parameters.disk names none"
    message = f"the package {problem}: it holds {', '.join(map(repr, names))}"
    raise OperationFailed(ErrorCode.INVALID_SPEC, message, disks=names)


def _stored_name(package: _Package, name: str) -> str:
    """A descriptor writes names as URIs do, or as they are; both are found in the wild."""
    return name if package.has(name) else unquote(name)


def _manifest(package: _Package, stem: str) -> tuple[dict[str, tuple[Digest, ...]], list[str]]:
    """What the manifest vouches for, if there is one, and warnings about what was not checked."""
    warnings = []
    if package.has(f"{stem}.cert"):
        warnings.append(f"the certificate {stem}.cert was not checked: nobody is known to have signed this")
    if not package.has(f"{stem}.mf"):
        return {}, warnings
    digests = read_manifest(package.read(f"{stem}.mf", MAX_MANIFEST_BYTES))
    if not digests:
        warnings.append(f"the manifest {stem}.mf vouches for nothing by SHA-1, SHA-256 or SHA-512")
    return digests, warnings


def _require_digests(name: str, content: bytes, expected: tuple[Digest, ...]) -> None:
    for each in expected:
        require_digest(name, each, hashlib.new(each.algorithm, content, usedforsecurity=False).hexdigest())


def require_digest(name: str, expected: Digest, actual: str) -> None:
    """Raise CHECKSUM_MISMATCH if a file has another digest than the manifest says."""
    if actual != expected.value:
        message = f"{name} has the {expected.algorithm} {actual}, its manifest says {expected.value}"
        raise OperationFailed(ErrorCode.CHECKSUM_MISMATCH, message, expected=expected.value, actual=actual)


def _read_small(image: ImageBytes, name: str, limit: int) -> bytes:
    if image.size > limit:
        raise Refused(unsafe(f"{name!r} has {image.size} bytes; no real one has more than {limit}"))
    return image.at(0, limit)


class _Archive:
    """The members of an OVA."""

    kind: Literal["ova", "ovf"] = "ova"

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._members = read_members(ImageBytes(file.descriptor))

    def descriptor_name(self) -> str:
        found = [each for each in self._members if each.lower().endswith(_DESCRIPTOR_SUFFIX)]
        if len(found) != 1:
            raise Refused(corrupt(f"an OVA has one descriptor (.ovf), this archive has {len(found)}"))
        return found[0]

    def has(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str, limit: int) -> bytes:
        member = self._members[name]
        window = Window(member.offset, member.size)
        return _read_small(ImageBytes(self._file.descriptor, window), name, limit)

    def content(self, name: str) -> Content:
        if not self.has(name):
            raise Refused(corrupt(f"the archive lacks the disk {name!r} that its descriptor names"))
        member = self._members[name]
        return Content(
            file=self._file, size=member.size, opened=(self._file,), window=member.window, member=name
        )


class _Directory:
    """The files beside an OVF descriptor, each through the same gate as any image."""

    kind: Literal["ova", "ovf"] = "ovf"

    def __init__(self, descriptor: OpenFile, stack: ExitStack) -> None:
        self._opened = {descriptor.name: descriptor}
        self._place = descriptor.directory
        self._stack = stack

    def has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._place.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(self, name: str, limit: int) -> bytes:
        return _read_small(ImageBytes(self._open(name).descriptor), name, limit)

    def content(self, name: str) -> Content:
        disk = self._open(name)
        return Content(file=disk, size=disk.size, opened=tuple(self._opened.values()), member=name)

    def _open(self, name: str) -> OpenFile:
        if name not in self._opened:
            self._opened[name] = open_regular(self._place, name, self._stack)
        return self._opened[name]
