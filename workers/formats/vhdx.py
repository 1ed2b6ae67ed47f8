"""The headers of a VHDX image (Microsoft's MS-VHDX)."""

import struct
import uuid
from array import array
from sys import byteorder

from workers.formats.header import Finding, Header, ImageBytes, corrupt, cut_short, unsafe

_SIGNATURE = b"vhdxfile"
_HEADERS_AT = (64 * 1024, 128 * 1024)
_REGIONS_AT = (192 * 1024, 256 * 1024)
_MIB = 1024 * 1024
_MAX_TABLE = 512 * _MIB
_HAS_PARENT = 1 << 1
_PAYLOAD_PRESENT = 6
_BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VIRTUAL_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le


def read(image: ImageBytes) -> Header | None:
    """Read the headers; None if this is no VHDX image."""
    if image.at(0, 8) != _SIGNATURE:
        return None
    regions = _regions(image)
    if _BAT not in regions or _METADATA not in regions:
        return Header(format="vhdx", findings=(corrupt("it has no valid region table"),))
    items = _metadata(image, *regions[_METADATA])
    block_size, flags = struct.unpack("<II", items.get(_FILE_PARAMETERS, b"\0" * 8))
    size = int.from_bytes(items.get(_VIRTUAL_SIZE, b""), "little")
    parent = bool(flags & _HAS_PARENT) or _PARENT_LOCATOR in items
    end = _data_end(image, *regions[_BAT], block_size)
    return Header(
        format="vhdx",
        variant="differencing" if parent else "fixed or dynamic",
        virtual_size=size or None,
        findings=(*_unsafe(parent=parent), *_corrupt(image, end, block_size)),
        facts={"block_size": block_size},
    )


def _regions(image: ImageBytes) -> dict[bytes, tuple[int, int]]:
    for at in _REGIONS_AT:
        table = image.at(at, 64 * 1024)
        if table[:4] == b"regi" and len(table) == 64 * 1024:
            count = min(int.from_bytes(table[8:12], "little"), 2047)
            rows = struct.iter_unpack("<16sQII", table[16 : 16 + 32 * count])
            return {kind: (offset, length) for kind, offset, length, _ in rows}
    return {}


def _metadata(image: ImageBytes, at: int, length: int) -> dict[bytes, bytes]:
    """The metadata items by kind, 8 bytes of each (all that is looked at here)."""
    table = image.at(at, 64 * 1024)
    if table[:8] != b"metadata" or len(table) < 64 * 1024 or length < 64 * 1024:
        return {}
    count = min(int.from_bytes(table[10:12], "little"), 2047)
    rows = struct.iter_unpack("<16sIIII", table[32 : 32 + 32 * count])
    return {kind: image.at(at + offset, 8).ljust(8, b"\0") for kind, offset, *_ in rows}


def _unsafe(*, parent: bool) -> list[Finding]:
    return [unsafe("it is a differencing disk: its content depends on another image")] if parent else []


def _corrupt(image: ImageBytes, end: int, block_size: int) -> list[Finding]:
    found = []
    if not block_size:
        found.append(corrupt("its metadata is missing"))
    if end > image.size:
        found.append(cut_short(end, image.size))
    if _pending_log(image):
        found.append(corrupt("its log holds changes that were never applied to it"))
    return found


def _pending_log(image: ImageBytes) -> bool:
    heads = [each for each in (image.at(at, 4096) for at in _HEADERS_AT) if each[:4] == b"head"]
    current = max(heads, key=lambda head: int.from_bytes(head[8:16], "little"), default=b"")
    return any(current[48:64])


def _data_end(image: ImageBytes, at: int, length: int, block_size: int) -> int:
    """The byte at which the last payload block ends, going by the block allocation table."""
    table = image.at(at, min(length, _MAX_TABLE))
    if len(table) < length:
        return at + length
    entries = array("Q", table[: len(table) // 8 * 8])
    if byteorder == "big":
        entries.byteswap()
    last = max((each >> 20 for each in entries if each & 7 == _PAYLOAD_PRESENT), default=None)
    return 0 if last is None else last * _MIB + block_size
