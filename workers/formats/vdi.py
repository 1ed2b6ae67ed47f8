"""The header of a VirtualBox disk image (VDI 1.1)."""

import struct

from workers.formats.header import SECTOR, Finding, Header, ImageBytes, corrupt, cut_short, unsafe

_SIGNATURE = b"\x7f\x10\xda\xbe"
_KINDS = {1: "dynamic", 2: "static"}
_FIELDS = struct.Struct("<I4x256xII12xI4xQIIII16x16x16s16s")


def read(image: ImageBytes) -> Header | None:
    """Read the header; None if this is no VDI image."""
    head = image.at(0, SECTOR)
    if head[64:68] != _SIGNATURE:
        return None
    if len(head) < SECTOR:
        return Header(format="vdi", findings=(cut_short(SECTOR, image.size),))
    kind, map_at, data_at, sector, size, block, extra, blocks, allocated, link, parent = _unpack(head)
    data_end = data_at + allocated * (block + extra)
    return Header(
        format="vdi",
        variant=_KINDS.get(kind, f"type {kind}"),
        virtual_size=size,
        findings=(
            *_unsafe(kind, link, parent),
            *_corrupt(max(data_end, map_at + 4 * blocks), image.size, sector),
        ),
        facts={"block_size": block},
    )


def _unpack(head: bytes) -> tuple[int, int, int, int, int, int, int, int, int, bytes, bytes]:
    kind, map_at, data_at, sector, size, block, extra, blocks, allocated, link, parent = _FIELDS.unpack_from(
        head, 76
    )
    return kind, map_at, data_at, sector, size, block, extra, blocks, allocated, link, parent


def _unsafe(kind: int, link: bytes, parent: bytes) -> list[Finding]:
    if kind not in _KINDS or any(link) or any(parent):
        return [unsafe("it is a differencing disk: its content depends on another image")]
    return []


def _corrupt(end: int, size: int, sector: int) -> list[Finding]:
    if end > size:
        return [cut_short(end, size)]
    return [] if sector == SECTOR else [corrupt(f"its sector size of {sector} bytes is impossible")]
