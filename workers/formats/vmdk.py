"""The header and the descriptor of a VMDK image (VMware's Virtual Disk Format 5.0)."""

import re
import struct
from array import array
from sys import byteorder

from workers.formats.header import SECTOR, Finding, Header, ImageBytes, corrupt, cut_short, unsafe

_SPARSE, _ESX_SPARSE = b"KDMV", b"COWD"
_DESCRIPTOR = re.compile(rb"\s*#\s*Disk Descriptor\s*File", re.IGNORECASE)
_FIELDS = struct.Struct("<IIQQQQIQQQ")
_COMPRESSED = 1 << 16
_AT_END = 0xFFFFFFFFFFFFFFFF
_MAX_DESCRIPTOR = 1024 * 1024
_MIN_DESCRIPTOR = 20 * SECTOR
_MAX_EXTENTS = 512
_PARENT = re.compile(rb"parentCID\s*=\s*([0-9a-fA-F]*)", re.IGNORECASE)
_HINT = re.compile(rb'parentFileNameHint[\s=]*"?([^"\r\n]*)', re.IGNORECASE)
_CREATE_TYPE = re.compile(rb'createType\s*=\s*"([^"]*)"', re.IGNORECASE)
_EXTENT_BEGIN = re.compile(rb"\s*(?:RW|RDONLY|NOACCESS)(?:\s|$)")
_EXTENT = re.compile(
    rb"[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+(\d{1,18})[ \t]+(\w+)"
    rb'(?:[ \t]+"([^"\r\n]*)"(?![ \t]*[+-])[ \t]*(\d{0,18})(?!\d).*)?\s*'
)
_EXTENT_KINDS = frozenset({"FLAT", "SPARSE", "VMFS"})
_MAX_GRAIN_SECTORS = 1 << 20
_MAX_TABLE_ENTRIES = 512
_MAX_CAPACITY_SECTORS = 1 << 48
_MAX_DIRECTORY_ENTRIES = 1 << 22
"""A directory for 64 TiB in grains of 64 KiB has half as many."""
_MARKER = struct.Struct("<QI")
_PLAIN_NAME = re.compile(r"[^/\\:\x00]+")


class _Sparse:
    """The binary header of a sparse extent."""

    def __init__(self, head: bytes) -> None:
        fields: tuple[int, ...] = _FIELDS.unpack_from(head, 4)
        self.flags, self.capacity, self.grain = fields[1:4]
        self.descriptor_at, self.descriptor_size = fields[4] * SECTOR, fields[5] * SECTOR
        self.per_table, self.directory = fields[6], fields[8]

    @property
    def sane(self) -> bool:
        sizes = 0 < self.grain <= _MAX_GRAIN_SECTORS and 0 < self.per_table <= _MAX_TABLE_ENTRIES
        return sizes and self.capacity <= _MAX_CAPACITY_SECTORS

    @property
    def tables(self) -> int:
        """How many grain tables the directory has."""
        return -(-self.capacity // (self.grain * self.per_table))


class Extent:
    """One line of a descriptor: a file that holds a part of the content."""

    def __init__(self, sectors: bytes, kind: bytes, name: bytes, offset: bytes) -> None:
        self.bytes = int(sectors) * SECTOR
        self.kind = kind.decode("ascii", "replace").upper()
        self.name = name.decode("utf-8", "replace")
        self.offset = int(offset or b"0") * SECTOR

    @property
    def plain(self) -> bool:
        """Whether the name is one of a file beside the descriptor, and nothing that a tool interprets."""
        return bool(_PLAIN_NAME.fullmatch(self.name)) and self.name not in (".", "..")


def read(image: ImageBytes) -> Header | None:
    """Read a sparse header or a text descriptor; None if this is no VMDK image."""
    head = image.at(0, SECTOR)
    if head.startswith(_SPARSE):
        return _read_sparse(image, head)
    if head.startswith(_ESX_SPARSE):
        return Header(format="vmdk", findings=(unsafe("it is an ESX snapshot (COWD), not a whole disk"),))
    if _DESCRIPTOR.match(head):
        return _read_descriptor(image)
    return None


def extent_findings(extent: Extent, image: ImageBytes) -> tuple[Finding, ...]:
    """What is wrong with a file that a descriptor names as one of its extents."""
    if extent.kind != "SPARSE":
        end = extent.offset + extent.bytes
        return (cut_short(end, image.size),) if end > image.size else ()
    head = image.at(0, SECTOR)
    if not head.startswith(_SPARSE):
        return (corrupt(f"the extent {extent.name!r} has no VMDK header"),)
    header = _read_sparse(image, head)
    return header.findings


def extents_of(image: ImageBytes) -> list[Extent]:
    """The extents that a text descriptor names."""
    understood = [each for each in _extent_lines(image.at(0, _MAX_DESCRIPTOR)) if each]
    return [Extent(*each.groups(b"")) for each in understood[: _MAX_EXTENTS + 1]]


def _extent_lines(text: bytes) -> "list[re.Match[bytes] | None]":
    """Every line that a tool may take for an extent; None for one that cannot be understood here.

    Tools read such lines with scanf, which takes signs before numbers and lets a line go on in the next.
    """
    return [_EXTENT.fullmatch(line) for line in text.split(b"\n") if _EXTENT_BEGIN.match(line)]


def _extents_findings(text: bytes, extents: list[Extent]) -> list[Finding]:
    outside = [each.name for each in extents if not each.plain and (each.name or each.kind in _EXTENT_KINDS)]
    found = [unsafe(f"it names an extent outside its directory: {name!r}") for name in outside]
    strange = {each.kind for each in extents} - _EXTENT_KINDS
    found += [
        unsafe(f"it has an extent of the kind {kind}, which tools leave out") for kind in sorted(strange)
    ]
    if None in _extent_lines(text):
        found.append(unsafe("a line about an extent is written so that tools may read it differently"))
    return found


def _read_descriptor(image: ImageBytes) -> Header:
    text = image.at(0, _MAX_DESCRIPTOR)
    extents = extents_of(image)
    found = [*_parent_findings(text), *_extents_findings(text, extents)]
    if not extents:
        found.append(corrupt("its descriptor names no extents"))
    if image.size > _MAX_DESCRIPTOR or len(extents) > _MAX_EXTENTS:
        found.append(unsafe("its descriptor is larger than any real one"))
    return Header(
        format="vmdk",
        variant=_create_type(text),
        virtual_size=sum(each.bytes for each in extents),
        backing=_backing(text),
        extents=tuple(each.name for each in extents if each.name),
        findings=tuple(found),
    )


def _read_sparse(image: ImageBytes, head: bytes) -> Header:
    if len(head) < SECTOR:
        return Header(format="vmdk", findings=(cut_short(SECTOR, image.size),))
    sparse = _Sparse(head)
    if sparse.capacity and sparse.directory == _AT_END:
        return _read_stream(image)
    return _sparse_header(image, sparse)


def _read_stream(image: ImageBytes) -> Header:
    """A stream's header was written first, and says only that the true one stands at the end."""
    footer = image.at(-(-image.size // SECTOR) * SECTOR - 2 * SECTOR, SECTOR)
    if not footer.startswith(_SPARSE):
        words = "the image is cut short: the footer at its end is missing"
        return Header(format="vmdk", findings=(corrupt(words),))
    sparse = _Sparse(footer)
    if sparse.directory == _AT_END:
        return Header(format="vmdk", findings=(corrupt("the footer at its end holds impossible values"),))
    return _sparse_header(image, sparse)


def _sparse_header(image: ImageBytes, sparse: _Sparse) -> Header:
    text = image.at(sparse.descriptor_at, _descriptor_length(sparse)) if sparse.descriptor_at else b""
    return Header(
        format="vmdk",
        variant=_create_type(text),
        virtual_size=sparse.capacity * SECTOR,
        backing=_backing(text),
        findings=(*_parent_findings(text), *_sparse_findings(image, sparse)),
        facts={"grain_size": sparse.grain * SECTOR, "compressed": bool(sparse.flags & _COMPRESSED)},
    )


def _descriptor_length(sparse: _Sparse) -> int:
    return min(max(sparse.descriptor_size, _MIN_DESCRIPTOR), _MAX_DESCRIPTOR)


def _create_type(text: bytes) -> str | None:
    match = _CREATE_TYPE.search(text)
    return match[1].decode("ascii", "replace") if match else None


def _backing(text: bytes) -> str | None:
    match = _HINT.search(text)
    return match[1].decode("utf-8", "replace") if match else None


def _parent_findings(text: bytes) -> list[Finding]:
    """A parent, by its content id or by its name: tools may look at either alone."""
    parents = {each.lower() for each in _PARENT.findall(text)}
    if parents - {b"ffffffff"} or _HINT.search(text):
        return [unsafe("it is a differencing disk: its content depends on another image")]
    return []


def _sparse_findings(image: ImageBytes, sparse: _Sparse) -> list[Finding]:
    if sparse.capacity == 0:
        return [unsafe("its header claims no capacity, which makes tools look for other files")]
    if not sparse.sane:
        return [corrupt("its header holds impossible sizes")]
    if sparse.tables > _MAX_DIRECTORY_ENTRIES:
        return [unsafe(f"its header claims {sparse.tables} grain tables, more than any real one has")]
    end = _data_end(image, sparse)
    return [cut_short(end, image.size)] if end > image.size else []


def _data_end(image: ImageBytes, sparse: _Sparse) -> int:
    """The byte at which the last grain ends, going by every grain table.

    Only the grain that lies last can be cut: reading beyond the end of a file gives zeros in some
    tools, so that a cut image would convert without an error and with wrong content.
    """
    tables = _words(image, sparse.directory * SECTOR, sparse.tables)
    if tables is None:
        return image.size + 1
    last = (0, 0)
    for position, sector in enumerate(tables):
        entries = _words(image, sector * SECTOR, sparse.per_table) if sector else array("I")
        if entries is None:
            return sector * SECTOR + 4 * sparse.per_table
        if entries and (highest := max(entries)) > last[0]:
            last = (highest, position * sparse.per_table + entries.index(highest))
    return _grain_end(image, sparse, *last)


def _grain_end(image: ImageBytes, sparse: _Sparse, sector: int, index: int) -> int:
    """Sectors 0 and 1 as a grain's place mean that there is none, or that it is all zeros."""
    if sector <= 1:
        return 0
    at = sector * SECTOR
    if sparse.flags & _COMPRESSED:
        marker = image.at(at, _MARKER.size).ljust(_MARKER.size, b"\0")
        return at + _MARKER.size + int(_MARKER.unpack(marker)[1])
    return at + min(sparse.grain, sparse.capacity - index * sparse.grain) * SECTOR


def _words(image: ImageBytes, at: int, count: int) -> "array[int] | None":
    data = image.at(at, 4 * count)
    if len(data) < 4 * count:
        return None
    words = array("I", data)
    if byteorder == "big":
        words.byteswap()
    return words
