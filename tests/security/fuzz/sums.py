"""Checksums that a damaged image gets anew, so that readers go on behind the place where they hold it."""

import binascii
import struct
from typing import Final

_SECTOR: Final = 512
_MAX_TABLE: Final = 1 << 20
_MAX_MEMBERS: Final = 64
_CASTAGNOLI: Final = 0x82F63B78


def mend(data: bytearray) -> None:
    """Make the checksums of every format that is found in the bytes right again."""
    for each in (_vhd, _gpt, _tar, _vhdx):
        each(data)


def _vhd(data: bytearray) -> None:
    for at in {0, max(len(data) - _SECTOR, 0)}:
        if data[at : at + 8] == b"conectix" and len(data) >= at + _SECTOR:
            _write_sum(data, at, 64, _SECTOR)
    if data[_SECTOR : _SECTOR + 8] == b"cxsparse" and len(data) >= _SECTOR + 1024:
        _write_sum(data, _SECTOR, 36, 1024)


def _write_sum(data: bytearray, at: int, field: int, length: int) -> None:
    """The one's complement of the sum of all bytes but the field's own."""
    total = sum(data[at : at + field]) + sum(data[at + field + 4 : at + length])
    struct.pack_into(">I", data, at + field, ~total & 0xFFFFFFFF)


def _gpt(data: bytearray) -> None:
    at = _SECTOR
    if data[at : at + 8] != b"EFI PART" or len(data) < 2 * _SECTOR:
        return
    (length,) = struct.unpack_from("<I", data, at + 12)
    table_at, count, size = struct.unpack_from("<QII", data, at + 72)
    table = data[table_at * _SECTOR : table_at * _SECTOR + min(count * size, _MAX_TABLE)]
    struct.pack_into("<I", data, at + 88, binascii.crc32(table))
    struct.pack_into("<I", data, at + 16, 0)
    struct.pack_into("<I", data, at + 16, binascii.crc32(data[at : at + min(length, _SECTOR)]))


def _tar(data: bytearray) -> None:
    if data[257:262] != b"ustar":
        return
    blocks = (at for at in range(0, len(data) - _SECTOR, _SECTOR) if data[at + 257 : at + 262] == b"ustar")
    for at, _ in zip(blocks, range(_MAX_MEMBERS), strict=False):
        total = sum(data[at : at + 148]) + sum(data[at + 156 : at + _SECTOR]) + 8 * ord(" ")
        data[at + 148 : at + 156] = b"%06o\0 " % total


def _vhdx(data: bytearray) -> None:
    if not data.startswith(b"vhdxfile"):
        return
    for at, mark, length in (
        (64 << 10, b"head", 4096),
        (128 << 10, b"head", 4096),
        (192 << 10, b"regi", 64 << 10),
        (256 << 10, b"regi", 64 << 10),
    ):
        if data[at : at + 4] == mark and len(data) >= at + length:
            struct.pack_into("<I", data, at + 4, 0)
            struct.pack_into("<I", data, at + 4, _crc32c(data[at : at + length]))


def _row(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
    return value


_ROWS: Final = tuple(_row(each) for each in range(256))


def _crc32c(data: bytes | bytearray) -> int:
    value = 0xFFFFFFFF
    for each in data:
        value = value >> 8 ^ _ROWS[(value ^ each) & 0xFF]
    return value ^ 0xFFFFFFFF
