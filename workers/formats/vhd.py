"""The footer of a VHD image, and its copy at the start of a dynamic one (Microsoft's VHD 1.0)."""

import struct
from array import array
from sys import byteorder

import msgspec

from workers.formats.header import SECTOR, Finding, Header, ImageBytes, corrupt, cut_short, unsafe

_COOKIE = b"conectix"
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_KINDS = {_FIXED: "fixed", _DYNAMIC: "dynamic", _DIFFERENCING: "differencing"}
_FIELDS = struct.Struct(">QI4s4xI8xQHBBII")
_UNUSED_BLOCK = 0xFFFFFFFF
_DYNAMIC_HEADER_BYTES = 1024
_MAX_TABLE_ENTRIES = 1 << 24
"""A disk of 2 TiB, the largest of this format, has a fourth of it in blocks of 512 KiB."""


def read(image: ImageBytes) -> Header | None:
    """Read the footer; None if this is no VHD image."""
    head, tail = image.at(0, SECTOR), image.at(max(0, image.size - SECTOR), SECTOR)
    if tail.startswith(_COOKIE) and len(tail) == SECTOR:
        header = _header(image, tail, cut=False)
        if head.startswith(_COOKIE):
            found = (*header.findings, *_copy_findings(head, tail))
            return msgspec.structs.replace(header, findings=found)
        return header
    if head.startswith(_COOKIE):
        return _header(image, head.ljust(SECTOR, b"\0"), cut=True)
    return None


def _header(image: ImageBytes, footer: bytes, *, cut: bool) -> Header:
    data_at, _, creator, _, size, cylinders, heads, sectors, kind, checksum = _FIELDS.unpack_from(footer, 16)
    found = [*_unsafe(kind), *_footer_findings(footer, checksum, cut=cut)]
    if kind == _FIXED and image.size - SECTOR < size:
        found.append(cut_short(size + SECTOR, image.size))
    block_size = None
    if kind == _DYNAMIC and not found:
        block_size, end = _dynamic(image, data_at)
        found += _table_findings(image, data_at, end)
    return Header(
        format="vhd",
        variant=_KINDS.get(kind, f"type {kind}"),
        findings=tuple(found),
        facts={
            "creator": creator.decode("ascii", "replace"),
            "size_bytes": size,
            "chs_bytes": cylinders * heads * sectors * SECTOR,
            "block_size": block_size,
        },
    )


def _copy_findings(head: bytes, tail: bytes) -> list[Finding]:
    """Some tools go by the copy at the start: it has to say the same of the disk as the footer."""
    (data_at, *_, size, _, _, _, kind, _), copy = _FIELDS.unpack_from(tail, 16), _FIELDS.unpack_from(head, 16)
    if (copy[0], copy[4], copy[8]) != (data_at, size, kind):
        return [*_unsafe(copy[8]), corrupt("the copy of its footer at its start says something else")]
    return []


def _unsafe(kind: int) -> list[Finding]:
    if kind == _DIFFERENCING:
        return [unsafe("it is a differencing disk: its content depends on another image")]
    return [] if kind in _KINDS else [unsafe(f"VHD type {kind} is not supported")]


def _footer_findings(footer: bytes, checksum: int, *, cut: bool) -> list[Finding]:
    found = []
    if cut:
        found.append(corrupt("the image is cut short: the footer at its end is missing"))
    if checksum != ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF:
        found.append(corrupt("the checksum of its footer is wrong"))
    return found


def _table_findings(image: ImageBytes, at: int, end: int) -> list[Finding]:
    entries = int.from_bytes(image.at(at + 28, 4), "big")
    if entries > _MAX_TABLE_ENTRIES:
        return [unsafe(f"its header claims a table of {entries} blocks, more than any real one has")]
    return [cut_short(end, image.size)] if end > image.size - SECTOR else []


def _dynamic(image: ImageBytes, at: int) -> tuple[int, int]:
    """The block size, and the byte at which the last block ends."""
    head = image.at(at, _DYNAMIC_HEADER_BYTES)
    if len(head) < _DYNAMIC_HEADER_BYTES or not head.startswith(b"cxsparse"):
        return 0, at + _DYNAMIC_HEADER_BYTES + image.size
    table_at, _, entries, block_size = struct.unpack_from(">QIII", head, 16)
    table = image.at(table_at, 4 * min(entries, _MAX_TABLE_ENTRIES))
    if len(table) < 4 * entries or not block_size:
        return block_size, table_at + 4 * entries + image.size
    bitmap = -(-block_size // SECTOR // 8 // SECTOR) * SECTOR
    return block_size, _last_block(table) + bitmap + block_size if entries else 0


def _last_block(table: bytes) -> int:
    sectors = array("I", table)
    if byteorder == "little":
        sectors.byteswap()
    return max((each for each in sectors if each != _UNUSED_BLOCK), default=-1) * SECTOR
