"""The gate that every image passes before a tool reads its content: images are hostile until checked."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import ImageParameters
from subjects.spec import ImageFormat, ImageSpec
from workers.chain import ALLOWED_BY, Layer, open_chain
from workers.checksum import OnBytes, digests
from workers.container import Content, locate, require_digest
from workers.context import JobContext
from workers.formats import FORMATS, Finding, Header, ImageBytes, foreign_format, read_header
from workers.formats.header import SECTOR, Window, unsafe
from workers.formats.vmdk import Extent, extent_findings, extents_of
from workers.links import DIRECTORY, link_files
from workers.qemu import Disk, ImageInfo, QemuImg
from workers.regular import OpenFile, open_image_file, open_regular
from workers.side_by_side import side_by_side
from workers.site import ANYWHERE, Site
from workers.workplace import Workplace

_ALLOWANCES = (ALLOWED_BY, "allow_snapshots")
"""Fields of `ImageParameters`."""

_NAMED_FORMATS = frozenset(
    {".vmdk", ".qcow2", ".qcow", ".vdi", ".vhd", ".vpc", ".vhdx", ".avhd", ".avhdx", ".qed", ".e01", ".ova"}
)


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What one job may open: images of the site, `member` of a container, and what it allows by name.

    `scratch` is where links are made to the files of an image that has several.
    """

    scratch: Path
    site: Site = ANYWHERE
    member: str | None = None
    allowed: frozenset[str] = frozenset()


class CheckedImage:
    """An open image whose header has been read and whose size and checksum are the declared ones.

    Its content is reached through `disk` only, which refuses an unsafe image. `path` is the file that
    holds it, `size` is in bytes, and `container` are the facts of the OVA or OVF that it is a part of.
    `chain` are the files that it builds on, and `allowed` is what would have been refused without the
    job's word.
    """

    def __init__(self, content: Content, header: Header, gate: Gate) -> None:
        self.path = content.file.path
        self.format: ImageFormat = header.format
        self.header = header
        self.size = content.size
        self.container = content.facts
        self.findings = tuple(each for each in header.findings if each.unless not in gate.allowed)
        self.allowed = tuple(each for each in header.findings if each.unless in gate.allowed)
        self.warnings = [*content.warnings, *header.warnings, *map(_allowance, self.allowed)]
        self.chain: tuple[Layer, ...] = ()
        self.checksum: str | None = None
        self._content = content
        self._opened = list(content.opened)
        self._gate = gate

    @property
    def disk(self) -> Disk:
        """The image as tools get it: by its open descriptors, so that none of its files can be exchanged.

        Raises IMAGE_UNSAFE if the image may not be read.
        """
        for each in self.findings:
            if each.code is ErrorCode.IMAGE_UNSAFE:
                raise self._refusal(each)
        file = self._content.file
        disk = Disk(path=self.path, format=self.format, window=self._content.window, backing=self._below())
        if not self.header.extents:
            return msgspec.structs.replace(disk, descriptor=file.descriptor)
        files = {each.name: each.descriptor for each in self._opened}
        link_files(self._gate.scratch, files)
        return msgspec.structs.replace(disk, inside=f"{DIRECTORY}/{file.name}", linked=tuple(files.values()))

    def _below(self) -> Disk | None:
        """What the image builds on, each with its format and its descriptor."""
        disk = None
        for each in reversed(self.chain):
            disk = Disk(
                path=each.file.path,
                format=each.header.format,
                descriptor=each.file.descriptor,
                backing=disk,
            )
        return disk

    def require_sound(self) -> None:
        """Raise IMAGE_UNSAFE or IMAGE_CORRUPT for the first thing that was found wrong."""
        for each in self.findings:
            raise self._refusal(each)

    async def examine(self, qemu: QemuImg) -> tuple[ImageInfo, bytes]:
        """Let qemu read the metadata, and hold its view against ours.

        Raises IMAGE_CORRUPT if it cannot open the image, IMAGE_UNSAFE if it sees what we did not, and
        FORMAT_MISMATCH if it would take the image for one of another format.
        """
        disk = self.disk
        found, second = await side_by_side(partial(qemu.info, disk), partial(qemu.opinion, disk))
        info, words = cast("tuple[ImageInfo, bytes]", found)
        for each in (*_doubts(info, self.header, self._gate), *_disagreement(self.header, second)):
            raise self._refusal(each)
        if self._content.window:
            # qemu tells what the whole archive occupies.
            info = msgspec.structs.replace(info, actual_size=self.size)
        return info, words

    def add_chain(self, stack: ExitStack) -> None:
        """Take the files that an allowed chain names through the same gate."""
        if any(each.unless == ALLOWED_BY for each in self.allowed):
            if self._content.container:
                self.findings = (
                    *self.findings,
                    unsafe("it builds on a backing file, and it is in a container"),
                )
                return
            top = Layer(self._content.file, self.header)
            self.chain = open_chain(top, self._gate.site, self._gate.allowed, stack)
            self._opened += [each.file for each in self.chain]

    def add_extents(self, stack: ExitStack) -> None:
        """Take the files that a descriptor names through the same gate."""
        if self.header.extents and self._content.window:
            self.findings = (
                *self.findings,
                unsafe("its content is in further files, and it is in an archive"),
            )
            return
        for extent in extents_of(self._content.bytes) if self.header.extents else ():
            if extent.plain:
                self._add_extent(extent, stack)

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

    def _add_extent(self, extent: Extent, stack: ExitStack) -> None:
        if any(each.name == extent.name for each in self._opened):
            return
        file = open_regular(self._content.file.directory, extent.name, stack)
        self._opened.append(file)
        self.findings = (*self.findings, *extent_findings(extent, ImageBytes(file.descriptor)))

    def _refusal(self, finding: Finding) -> OperationFailed:
        return OperationFailed(finding.code, f"{self._content.label}: {finding.words}")


@asynccontextmanager
async def open_job_image(job: JobContext, place: Workplace, on_bytes: OnBytes) -> AsyncIterator[CheckedImage]:
    """Open a job's image as every operation does: through the gate, with what the job allows in its log.

    Raises what `open_image` raises.
    """
    wanted: ImageParameters = job.parameters
    allowed = frozenset(each for each in _ALLOWANCES if getattr(wanted, each))
    gate = Gate(scratch=place.scratch, site=job.site, member=wanted.disk, allowed=allowed)
    async with open_image(job.spec.image, on_bytes, gate) as image:
        for each in image.allowed:
            place.log.line(_allowance(each))
        yield image


@asynccontextmanager
async def open_image(spec: ImageSpec, on_bytes: OnBytes, gate: Gate) -> AsyncIterator[CheckedImage]:
    """Open an image and check it against its description, without any tool.

    `on_bytes` hears how far the checksum is. Raises OperationFailed with IMAGE_NOT_FOUND,
    IMAGE_UNREADABLE, IMAGE_UNSAFE (below no root, not a regular file, a hostile container, or a hostile
    chain), IMAGE_CORRUPT (empty, or without the header that its name promises),
    INVALID_SPEC (no such member), SIZE_MISMATCH, FORMAT_MISMATCH or CHECKSUM_MISMATCH. What the header
    reveals beyond that stands in the image's `findings`.
    """
    with ExitStack() as stack:
        image = await anyio.to_thread.run_sync(_admit, spec, gate, stack)
        if spec.checksum:
            await image.verify(spec.checksum, on_bytes)
        await image.verify_manifest(on_bytes)
        yield image


def _admit(spec: ImageSpec, gate: Gate, stack: ExitStack) -> CheckedImage:
    named = open_image_file(gate.site, Path(spec.path), stack)
    _require_size(spec, named)
    try:
        content = locate(named, gate.member, stack)
        header = read_header(content.bytes) or _raw_header(spec, content)
        _refuse_other_format(spec, content, header)
        image = CheckedImage(content, _within_limits(header, gate.site), gate)
        image.add_extents(stack)
        image.add_chain(stack)
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


def _within_limits(header: Header, site: Site) -> Header:
    if header.virtual_size is None or header.virtual_size <= site.max_virtual_bytes:
        return header
    return msgspec.structs.replace(header, findings=(*header.findings, _too_large(header.virtual_size, site)))


def _allowance(finding: Finding) -> str:
    return f"allowed by parameters.{finding.unless}: {finding.reason}"


def _doubts(info: ImageInfo, header: Header, gate: Gate) -> list[Finding]:
    found = []
    if info.backing_filename is not None and ALLOWED_BY not in gate.allowed:
        found.append(unsafe(f"it builds on a backing file: {info.backing_filename!r}"))
    if info.encrypted:
        found.append(unsafe("it is encrypted"))
    if info.virtual_size > gate.site.max_virtual_bytes:
        found.append(_too_large(info.virtual_size, gate.site))
    known = header.virtual_size
    if known is not None and info.virtual_size != -(-known // SECTOR) * SECTOR:
        words = f"its header was read as a disk of {known} bytes, qemu sees one of {info.virtual_size}"
        found.append(unsafe(words))
    return found


def _disagreement(header: Header, second: str) -> list[Finding]:
    """Whether qemu, left to itself, takes the image for another format.

    A fixed VHD has its footer at the end only, where qemu does not look.
    """
    plain = header.format == "vhd" and header.variant == "fixed"
    if second == FORMATS[header.format].qemu or (plain and second == "raw"):
        return []
    words = f"its header is that of {header.format}, and qemu takes it for {second!r}"
    return [Finding(ErrorCode.FORMAT_MISMATCH, words)]


def _too_large(size: int, site: Site) -> Finding:
    return unsafe(f"it claims a disk of {size} bytes; the limit is {site.max_virtual_bytes}")
