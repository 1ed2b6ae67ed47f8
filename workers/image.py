"""The gate that every image passes before a tool reads its content: images are hostile until checked."""

import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.spec import ImageFormat, ImageSpec
from workers.formats import Finding, Header, ImageBytes, foreign_format, read_header
from workers.formats.header import unsafe
from workers.formats.vmdk import Extent, extent_findings, extents_of
from workers.qemu import Disk, ImageInfo, QemuImg

MAX_VIRTUAL_BYTES = 64 << 40
"""64 TiB: the largest disk of the common hypervisors. A header of 500 bytes may claim far more."""

_HASH_CHUNK = 8 * 1024 * 1024
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAMED_FORMATS = frozenset(
    {".vmdk", ".qcow2", ".qcow", ".vdi", ".vhd", ".vpc", ".vhdx", ".avhd", ".avhdx", ".qed", ".e01", ".ova"}
)
_ERRNO_CODES = {
    errno.ENOENT: ErrorCode.IMAGE_NOT_FOUND,
    errno.ENOTDIR: ErrorCode.IMAGE_NOT_FOUND,
    errno.ENAMETOOLONG: ErrorCode.IMAGE_NOT_FOUND,
    errno.ELOOP: ErrorCode.IMAGE_UNSAFE,
}
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}

OnBytes = Callable[[int, int], None]


class Identity(msgspec.Struct, frozen=True):
    """What tells a file from another one, and from itself once it was written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class CheckedImage:
    """An open image whose header has been read and whose size and checksum are the declared ones.

    Its content is reached through `disk` only, which refuses an unsafe image.
    """

    def __init__(self, path: Path, descriptor: int, format_: ImageFormat, header: Header) -> None:
        self.path = path
        self.format = format_
        self.header = header
        self.size = os.fstat(descriptor).st_size
        self.findings = header.findings
        self.warnings = list(header.warnings)
        self.checksum: str | None = None
        self._descriptor = descriptor
        self._identities = {path: Identity.of(os.fstat(descriptor))}

    @property
    def disk(self) -> Disk:
        """The image as tools get it: by its open descriptor, so that it cannot be exchanged.

        An image of several files is given by its path, because qemu looks for the others beside it.
        Raises IMAGE_UNSAFE if the image may not be read.
        """
        for each in self.findings:
            if each.code is ErrorCode.IMAGE_UNSAFE:
                raise self._refusal(each)
        descriptor = None if self.header.extents else self._descriptor
        return Disk(path=self.path, format=self.format, descriptor=descriptor)

    def require_sound(self) -> None:
        """Raise IMAGE_UNSAFE or IMAGE_CORRUPT for the first thing that was found wrong."""
        for each in self.findings:
            raise self._refusal(each)

    async def examine(self, qemu: QemuImg) -> tuple[ImageInfo, bytes]:
        """Let qemu read the metadata, and hold its view against ours.

        Raises IMAGE_CORRUPT if it cannot open the image, IMAGE_UNSAFE if it sees what we did not.
        """
        info, words = await qemu.info(self.disk)
        for each in _doubts(info):
            raise self._refusal(each)
        return info, words

    def add_extents(self) -> None:
        """Take the files that a descriptor names through the same gate."""
        for extent in extents_of(ImageBytes(self._descriptor)) if self.header.extents else ():
            if extent.plain:
                self._add_extent(extent)

    def require_unchanged(self) -> None:
        """Raise IMAGE_UNSAFE if the image, or what its path names, changed since it was opened."""
        for path, before in self._identities.items():
            try:
                now = Identity.of(path.lstat())
            except OSError:
                now = None
            if now != before:
                message = f"{path} was changed or exchanged while it was being read"
                raise OperationFailed(ErrorCode.IMAGE_UNSAFE, message)

    async def verify(self, expected: str, on_bytes: OnBytes) -> None:
        """Hash the whole file; raise CHECKSUM_MISMATCH if it is another one than described."""
        wanted = expected.removeprefix("sha256:").lower()
        self.checksum = await _sha256(self._descriptor, self.size, on_bytes)
        if self.checksum != wanted:
            message = f"{self.path} has the SHA-256 {self.checksum}, not {wanted}"
            raise OperationFailed(ErrorCode.CHECKSUM_MISMATCH, message, expected=wanted, actual=self.checksum)

    def _add_extent(self, extent: Extent) -> None:
        path = self.path.parent / extent.name
        descriptor = _open_regular(path)
        try:
            self._identities[path] = Identity.of(os.fstat(descriptor))
            self.findings = (*self.findings, *extent_findings(extent, ImageBytes(descriptor)))
        finally:
            os.close(descriptor)

    def _refusal(self, finding: Finding) -> OperationFailed:
        return OperationFailed(finding.code, f"{self.path}: {finding.reason}")


@asynccontextmanager
async def open_image(spec: ImageSpec, on_bytes: OnBytes) -> AsyncIterator[CheckedImage]:
    """Open the job's image and check it against its description, without any tool.

    `on_bytes` hears how far the checksum is. Raises OperationFailed with IMAGE_NOT_FOUND,
    IMAGE_UNREADABLE, IMAGE_UNSAFE (not a regular file), IMAGE_CORRUPT (empty, or without the header
    that its name promises), SIZE_MISMATCH, FORMAT_MISMATCH or CHECKSUM_MISMATCH. What the header
    reveals beyond that stands in the image's `findings`.
    """
    path = Path(spec.path)
    descriptor = await anyio.to_thread.run_sync(_open_regular, path)
    try:
        image = await anyio.to_thread.run_sync(_recognise, spec, descriptor)
        if spec.checksum:
            await image.verify(spec.checksum, on_bytes)
        yield image
    finally:
        os.close(descriptor)


def _open_regular(path: Path) -> int:
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
        if kind != stat.S_IFREG:
            words = _KINDS.get(kind, "not a file")
            raise OperationFailed(
                ErrorCode.IMAGE_UNSAFE, f"{path} is {words}; only a regular file is accepted"
            )
        descriptor = os.open(path, _READ)
    except OSError as error:
        code = _ERRNO_CODES.get(error.errno or 0, ErrorCode.IMAGE_UNREADABLE)
        raise OperationFailed(code, f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OperationFailed(ErrorCode.IMAGE_UNSAFE, f"{path} was exchanged while it was being opened")
    return descriptor


def _recognise(spec: ImageSpec, descriptor: int) -> CheckedImage:
    path, content = Path(spec.path), ImageBytes(descriptor)
    if spec.size_bytes is not None and spec.size_bytes != content.size:
        message = f"{path} has {content.size} bytes, not {spec.size_bytes}"
        raise OperationFailed(ErrorCode.SIZE_MISMATCH, message)
    try:
        header = read_header(content) or _raw_header(spec, content)
        _refuse_other_format(spec, header)
        image = CheckedImage(path, descriptor, header.format, _within_limits(header))
        image.add_extents()
    except OSError as error:
        raise OperationFailed(ErrorCode.IMAGE_UNREADABLE, f"{path}: {error.strerror}") from error
    return image


def _raw_header(spec: ImageSpec, content: ImageBytes) -> Header:
    """Accept a file without a header as raw, unless anything says that it should have one."""
    suffix = Path(spec.path).suffix.lower()
    if content.size == 0:
        raise OperationFailed(ErrorCode.IMAGE_CORRUPT, f"{spec.path} is empty")
    if foreign := foreign_format(content):
        raise OperationFailed(
            ErrorCode.FORMAT_MISMATCH, f"{spec.path} is {foreign}, which is no supported image"
        )
    if spec.format not in {None, "raw"}:
        message = f"{spec.path} is declared as {spec.format}, but has no such header"
        raise OperationFailed(ErrorCode.FORMAT_MISMATCH, message)
    if suffix in _NAMED_FORMATS:
        message = f"{spec.path} is named {suffix}, but has no such header: it is damaged or misnamed"
        raise OperationFailed(ErrorCode.IMAGE_CORRUPT, message)
    return Header(format="raw", virtual_size=content.size)


def _refuse_other_format(spec: ImageSpec, header: Header) -> None:
    if spec.format not in {None, header.format}:
        message = f"{spec.path} is declared as {spec.format}, but its header is that of {header.format}"
        raise OperationFailed(
            ErrorCode.FORMAT_MISMATCH, message, declared=spec.format, detected=header.format
        )


def _within_limits(header: Header) -> Header:
    if header.virtual_size is None or header.virtual_size <= MAX_VIRTUAL_BYTES:
        return header
    return msgspec.structs.replace(header, findings=(*header.findings, _too_large(header.virtual_size)))


def _doubts(info: ImageInfo) -> list[Finding]:
    found = []
    if info.backing_filename is not None:
        found.append(unsafe(f"it builds on a backing file: {info.backing_filename!r}"))
    if info.encrypted:
        found.append(unsafe("it is encrypted"))
    if info.virtual_size > MAX_VIRTUAL_BYTES:
        found.append(_too_large(info.virtual_size))
    return found


def _too_large(size: int) -> Finding:
    return unsafe(f"it claims a disk of {size} bytes; the limit is {MAX_VIRTUAL_BYTES}")


async def _sha256(descriptor: int, size: int, on_bytes: OnBytes) -> str:
    digest, done = hashlib.sha256(), 0

    def step() -> int:
        chunk = os.pread(descriptor, _HASH_CHUNK, done)
        digest.update(chunk)
        return len(chunk)

    while count := await anyio.to_thread.run_sync(step):
        done += count
        on_bytes(done, size)
    return digest.hexdigest()
