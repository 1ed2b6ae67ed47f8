"""The gate that every image passes before a tool reads its content: images are hostile until checked."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.spec import ImageFormat, ImageSpec
from workers.checksum import OnBytes, digests
from workers.container import Content, locate, require_digest
from workers.formats import Finding, Header, ImageBytes, foreign_format, read_header
from workers.formats.header import SECTOR, Window, unsafe
from workers.formats.vmdk import Extent, extent_findings, extents_of
from workers.qemu import Disk, ImageInfo, QemuImg
from workers.regular import OpenFile, open_regular

MAX_VIRTUAL_BYTES = 64 << 40
"""64 TiB: the largest disk of the common hypervisors. A header of 500 bytes may claim far more."""

_NAMED_FORMATS = frozenset(
    {".vmdk", ".qcow2", ".qcow", ".vdi", ".vhd", ".vpc", ".vhdx", ".avhd", ".avhdx", ".qed", ".e01", ".ova"}
)


class CheckedImage:
    """An open image whose header has been read and whose size and checksum are the declared ones.

    Its content is reached through `disk` only, which refuses an unsafe image. `path` is the file that
    holds it, `size` is in bytes, and `container` are the facts of the OVA or OVF that it is a part of.
    """

    def __init__(self, content: Content, header: Header) -> None:
        self.path = content.file.path
        self.format: ImageFormat = header.format
        self.header = header
        self.size = content.size
        self.container = content.facts
        self.findings = header.findings
        self.warnings = [*content.warnings, *header.warnings]
        self.checksum: str | None = None
        self._content = content
        self._opened = list(content.opened)

    @property
    def disk(self) -> Disk:
        """The image as tools get it: by its open descriptor, so that it cannot be exchanged.

        An image of several files is given by its path, because qemu looks for the others beside it.
        Raises IMAGE_UNSAFE if the image may not be read.
        """
        for each in self.findings:
            if each.code is ErrorCode.IMAGE_UNSAFE:
                raise self._refusal(each)
        descriptor = None if self.header.extents else self._content.file.descriptor
        return Disk(
            path=self.path,
            format=self.format,
            descriptor=descriptor,
            window=self._content.window,
            beside=tuple(each.path for each in self._opened if each.path != self.path),
        )

    def require_sound(self) -> None:
        """Raise IMAGE_UNSAFE or IMAGE_CORRUPT for the first thing that was found wrong."""
        for each in self.findings:
            raise self._refusal(each)

    async def examine(self, qemu: QemuImg) -> tuple[ImageInfo, bytes]:
        """Let qemu read the metadata, and hold its view against ours.

        Raises IMAGE_CORRUPT if it cannot open the image, IMAGE_UNSAFE if it sees what we did not.
        """
        info, words = await qemu.info(self.disk)
        for each in _doubts(info, self.header.virtual_size):
            raise self._refusal(each)
        if self._content.window:
            # qemu tells what the whole archive occupies.
            info = msgspec.structs.replace(info, actual_size=self.size)
        return info, words

    def add_extents(self) -> None:
        """Take the files that a descriptor names through the same gate."""
        if self.header.extents and self._content.window:
            self.findings = (
                *self.findings,
                unsafe("its content is in further files, and it is in an archive"),
            )
            return
        for extent in extents_of(self._content.bytes) if self.header.extents else ():
            if extent.plain:
                self._add_extent(extent)

    def require_unchanged(self) -> None:
        """Raise IMAGE_UNSAFE if the image, or what its path names, changed since it was opened."""
        for each in self._opened:
            each.require_unchanged()

    async def verify(self, expected: str, on_bytes: OnBytes) -> None:
        """Hash the file that the job names; raise CHECKSUM_MISMATCH if it is another one than described."""
        named, wanted = self._opened[0], expected.removeprefix("sha256:").lower()
        found = await digests(named.descriptor, Window(0, named.size), {"sha256"}, on_bytes)
        self.checksum = found["sha256"]
        if self.checksum != wanted:
            message = f"{named.path} has the SHA-256 {self.checksum}, not {wanted}"
            raise OperationFailed(ErrorCode.CHECKSUM_MISMATCH, message, expected=wanted, actual=self.checksum)

    async def verify_manifest(self, on_bytes: OnBytes) -> None:
        """Hash the disk as the container's manifest does. Raises CHECKSUM_MISMATCH."""
        content = self._content
        algorithms = {each.algorithm for each in content.expected}
        if algorithms:
            found = await digests(content.file.descriptor, content.exact, algorithms, on_bytes)
            for each in content.expected:
                require_digest(content.label, each, found[each.algorithm])

    def _add_extent(self, extent: Extent) -> None:
        with ExitStack() as stack:
            file = open_regular(self.path.parent / extent.name, stack)
            self._opened.append(file)
            self.findings = (*self.findings, *extent_findings(extent, ImageBytes(file.descriptor)))

    def _refusal(self, finding: Finding) -> OperationFailed:
        return OperationFailed(finding.code, f"{self._content.label}: {finding.reason}")


@asynccontextmanager
async def open_image(
    spec: ImageSpec, on_bytes: OnBytes, *, member: str | None = None
) -> AsyncIterator[CheckedImage]:
    """Open the job's image and check it against its description, without any tool.

    `member` names one of the disks of an OVA or OVF. `on_bytes` hears how far the checksum is. Raises
    OperationFailed with IMAGE_NOT_FOUND, IMAGE_UNREADABLE, IMAGE_UNSAFE (not a regular file, or a
    hostile container), IMAGE_CORRUPT (empty, or without the header that its name promises),
    INVALID_SPEC (no such member), SIZE_MISMATCH, FORMAT_MISMATCH or CHECKSUM_MISMATCH. What the header
    reveals beyond that stands in the image's `findings`.
    """
    with ExitStack() as stack:
        image = await anyio.to_thread.run_sync(_admit, spec, member, stack)
        if spec.checksum:
            await image.verify(spec.checksum, on_bytes)
        await image.verify_manifest(on_bytes)
        yield image


def _admit(spec: ImageSpec, member: str | None, stack: ExitStack) -> CheckedImage:
    named = open_regular(Path(spec.path), stack)
    _require_size(spec, named)
    try:
        content = locate(named, member, stack)
        header = read_header(content.bytes) or _raw_header(spec, content)
        _refuse_other_format(spec, content, header)
        image = CheckedImage(content, _within_limits(header))
        image.add_extents()
    except OSError as error:
        raise OperationFailed(ErrorCode.IMAGE_UNREADABLE, f"{named.path}: {error.strerror}") from error
    return image


def _require_size(spec: ImageSpec, file: OpenFile) -> None:
    if spec.size_bytes is not None and spec.size_bytes != file.size:
        message = f"{file.path} has {file.size} bytes, not {spec.size_bytes}"
        raise OperationFailed(ErrorCode.SIZE_MISMATCH, message)


def _raw_header(spec: ImageSpec, content: Content) -> Header:
    """Accept a file without a header as raw, unless anything says that it should have one."""
    label, suffix = content.label, content.suffix
    if content.size == 0:
        raise OperationFailed(ErrorCode.IMAGE_CORRUPT, f"{label} is empty")
    if foreign := foreign_format(content.bytes):
        raise OperationFailed(ErrorCode.FORMAT_MISMATCH, f"{label} is {foreign}, which is no supported image")
    if spec.format not in {None, "raw"}:
        message = f"{label} is declared as {spec.format}, but has no such header"
        raise OperationFailed(ErrorCode.FORMAT_MISMATCH, message)
    if suffix in _NAMED_FORMATS:
        message = f"{label} is named {suffix}, but has no such header: it is damaged or misnamed"
        raise OperationFailed(ErrorCode.IMAGE_CORRUPT, message)
    return Header(format="raw", virtual_size=content.bytes.size)


def _refuse_other_format(spec: ImageSpec, content: Content, header: Header) -> None:
    if spec.format not in {None, header.format}:
        message = f"{content.label} is declared as {spec.format}, but its header is that of {header.format}"
        raise OperationFailed(
            ErrorCode.FORMAT_MISMATCH, message, declared=spec.format, detected=header.format
        )


def _within_limits(header: Header) -> Header:
    if header.virtual_size is None or header.virtual_size <= MAX_VIRTUAL_BYTES:
        return header
    return msgspec.structs.replace(header, findings=(*header.findings, _too_large(header.virtual_size)))


def _doubts(info: ImageInfo, known_size: int | None) -> list[Finding]:
    found = []
    if info.backing_filename is not None:
        found.append(unsafe(f"it builds on a backing file: {info.backing_filename!r}"))
    if info.encrypted:
        found.append(unsafe("it is encrypted"))
    if info.virtual_size > MAX_VIRTUAL_BYTES:
        found.append(_too_large(info.virtual_size))
    if known_size is not None and info.virtual_size != -(-known_size // SECTOR) * SECTOR:
        words = f"its header was read as a disk of {known_size} bytes, qemu sees one of {info.virtual_size}"
        found.append(unsafe(words))
    return found


def _too_large(size: int) -> Finding:
    return unsafe(f"it claims a disk of {size} bytes; the limit is {MAX_VIRTUAL_BYTES}")
