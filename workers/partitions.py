"""Partition tables, read from the disk's content alone: MBR with logical partitions, and GPT.

Nothing here does input or output: a reader gives ranges of the disk. No content, however damaged, raises
anything but what the reader raises.
"""

import binascii
import itertools
import struct
import uuid
from collections.abc import Awaitable, Callable

import msgspec

from workers.formats.header import SECTOR

ReadRange = Callable[[int, int], Awaitable[bytes]]

_SIGNATURE = b"\x55\xaa"
_ENTRY = struct.Struct("<B3xB3xII")
_ENTRIES_AT = 446
_EMPTY, _PROTECTIVE = 0x00, 0xEE
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
_STATUSES = frozenset({0x00, 0x80})
_FIRST_LOGICAL, _MAX_LOGICAL = 5, 128
_GPT_MAGIC = b"EFI PART"
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_SECTOR_SIZES = (SECTOR, 4096)
_MAX_TABLE_BYTES = 1024 * 1024
_BOOT_FLAG = 1 << 2
FILESYSTEM_BYTES = 68 * 1024
"""How much of a volume's start tells its filesystem."""

_MBR_TYPES = {
    0x01: "FAT12",
    0x04: "FAT16",
    0x05: "extended",
    0x06: "FAT16",
    0x07: "NTFS or exFAT",
    0x0B: "FAT32",
    0x0C: "FAT32",
    0x0E: "FAT16",
    0x0F: "extended",
    0x82: "Linux swap",
    0x83: "Linux",
    0x85: "extended",
    0x8E: "Linux LVM",
    0xA5: "FreeBSD",
    0xEE: "GPT protective",
    0xEF: "EFI system",
    0xFD: "Linux RAID",
}
_GPT_TYPES = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery",
}
_FILESYSTEMS = (
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (54, b"FAT12   ", "vfat"),
    (54, b"FAT16   ", "vfat"),
    (82, b"FAT32   ", "vfat"),
    (0, b"XFSB", "xfs"),
    (0, b"LUKS\xba\xbe", "luks"),
    (512, b"LABELONE", "lvm"),
    (1080, b"\x53\xef", "ext"),
    (4086, b"SWAPSPACE2", "swap"),
    (32769, b"CD001", "iso9660"),
    (65600, b"_BHRfS_M", "btrfs"),
)
_WITH_BOOT_SECTOR = frozenset({"ntfs", "exfat", "vfat"})


class Partition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One partition. `filesystem` is what its first bytes look like, None if they look like nothing known."""

    number: int
    start_bytes: int
    size_bytes: int
    type: str
    name: str = ""
    id: str | None = None
    bootable: bool = False
    filesystem: str | None = None


class PartitionTable(msgspec.Struct, frozen=True, kw_only=True):
    """`scheme` is gpt, mbr or none; a disk without a table may hold one bare `filesystem`."""

    scheme: str
    sector_size: int = SECTOR
    disk_id: str | None = None
    filesystem: str | None = None
    partitions: tuple[Partition, ...] = ()
    warnings: tuple[str, ...] = ()


class _Entry(msgspec.Struct, frozen=True):
    status: int
    kind: int
    first: int
    sectors: int

    @property
    def used(self) -> bool:
        return self.kind != _EMPTY and self.sectors > 0


async def read_table(read: ReadRange, size: int) -> PartitionTable:
    """Read the partition table of a disk of `size` bytes through `read(offset, length)`.

    `offset` and `length` are multiples of 512; a range beyond the end of the disk comes back short.
    """
    head = await read(0, FILESYSTEM_BYTES)
    sector = head[:SECTOR].ljust(SECTOR, b"\0")
    entries = mbr_entries(sector)
    if _is_protective(entries) or _gpt_at_start(head):
        return await _read_gpt(read, size, entries)
    filesystem = filesystem_of(head)
    if not _is_table(sector, entries, size, filesystem):
        return PartitionTable(scheme="none", filesystem=filesystem)
    return await _read_mbr(read, sector, entries, size)


def filesystem_of(head: bytes) -> str | None:
    """What filesystem or container the first bytes of a volume belong to."""
    found = (name for at, magic, name in _FILESYSTEMS if head[at : at + len(magic)] == magic)
    return next(found, None)


def mbr_entries(sector: bytes) -> list[_Entry]:
    """The four entries of a boot sector; none if it is not signed."""
    if len(sector) < SECTOR or sector[SECTOR - 2 : SECTOR] != _SIGNATURE:
        return []
    return [_Entry(*each) for each in _ENTRY.iter_unpack(sector[_ENTRIES_AT : SECTOR - 2])]


def _is_protective(entries: list[_Entry]) -> bool:
    """Whether the entries announce a GPT; the code of a boot sector may hold the same byte by chance."""
    plausible = all(each.status in _STATUSES for each in entries)
    return plausible and any(each.kind == _PROTECTIVE and each.used for each in entries)


def _is_table(sector: bytes, entries: list[_Entry], size: int, filesystem: str | None) -> bool:
    """Tell a partition table from a filesystem's boot sector, whose code stands where entries would."""
    if not entries or any(each.status not in _STATUSES for each in entries):
        return False
    used = [each for each in entries if each.used]
    if filesystem in _WITH_BOOT_SECTOR or sector[0] in b"\xeb\xe9":
        inside = all(0 < each.first * SECTOR < size for each in used)
        return bool(used) and inside and not _overlap(used)
    return True


def _overlap(entries: list[_Entry]) -> bool:
    ordered = sorted(entries, key=lambda each: each.first)
    return any(one.first + one.sectors > other.first for one, other in itertools.pairwise(ordered))


async def _read_mbr(read: ReadRange, sector: bytes, entries: list[_Entry], size: int) -> PartitionTable:
    numbered = [(number, each) for number, each in enumerate(entries, 1) if each.used]
    partitions = [_mbr_partition(number, each) for number, each in numbered]
    warnings: list[str] = []
    for _, each in numbered:
        if each.kind in _EXTENDED:
            partitions += await _logical(read, each.first, warnings)
    warnings += [_beyond(each) for each in partitions if each.start_bytes + each.size_bytes > size]
    if _overlap([each for _, each in numbered]):
        warnings.append("partitions overlap")
    return PartitionTable(
        scheme="mbr",
        disk_id=f"{int.from_bytes(sector[440:444], 'little'):08x}",
        partitions=tuple(partitions),
        warnings=tuple(warnings),
    )


async def _logical(read: ReadRange, base: int, warnings: list[str]) -> list[Partition]:
    """Follow the chain of logical partitions inside an extended one; a chain may be a hostile loop."""
    found: list[Partition] = []
    seen: set[int] = set()
    at = base
    while at not in seen and len(seen) < _MAX_LOGICAL:
        seen.add(at)
        entries = mbr_entries(await read(at * SECTOR, SECTOR))
        if not entries:
            warnings.append(f"the chain of logical partitions breaks at sector {at}")
            return found
        for each in entries[:1]:
            if each.used:
                moved = _Entry(each.status, each.kind, at + each.first, each.sectors)
                found.append(_mbr_partition(_FIRST_LOGICAL + len(found), moved))
        following = next((each for each in entries[1:2] if each.used and each.kind in _EXTENDED), None)
        if following is None:
            return found
        at = base + following.first
    warnings.append("the chain of logical partitions does not end")
    return found


def _mbr_partition(number: int, entry: _Entry) -> Partition:
    return Partition(
        number=number,
        start_bytes=entry.first * SECTOR,
        size_bytes=entry.sectors * SECTOR,
        type=_MBR_TYPES.get(entry.kind, f"0x{entry.kind:02x}"),
        bootable=entry.status in _STATUSES and entry.status > 0,
    )


def _beyond(partition: Partition) -> str:
    return f"partition {partition.number} ends beyond the disk"


def _gpt_at_start(head: bytes) -> bool:
    return any(head[each : each + len(_GPT_MAGIC)] == _GPT_MAGIC for each in _SECTOR_SIZES)


class _GptHeader:
    """A GPT header whose checksum holds."""

    def __init__(self, sector_size: int, fields: tuple[int, ...], disk: bytes) -> None:
        self.sector_size = sector_size
        self.disk_id = str(uuid.UUID(bytes_le=disk))
        self.entries_at = fields[0] * sector_size
        self.count, self.entry_size, self.entries_crc = fields[1:]

    @property
    def table_bytes(self) -> int:
        return self.count * self.entry_size


async def _read_gpt(read: ReadRange, size: int, entries: list[_Entry]) -> PartitionTable:
    """Read the table at the start, or its backup at the end if that one is damaged."""
    warnings = [] if _is_protective(entries) else ["the protective MBR is missing"]
    for sector_size in _SECTOR_SIZES:
        for at in (sector_size, size // sector_size * sector_size - sector_size):
            header = _gpt_header(await read(at, sector_size), sector_size, at)
            table = await _gpt_table(read, header) if header else None
            if header and table is not None:
                if at != sector_size:
                    warnings.append("the GPT at the start is damaged; its backup at the end was read")
                return _gpt(header, table, size, warnings)
    return PartitionTable(scheme="gpt", warnings=(*warnings, "both copies of the GPT are damaged"))


def _gpt_header(sector: bytes, sector_size: int, at: int) -> _GptHeader | None:
    if len(sector) < sector_size or sector[:8] != _GPT_MAGIC:
        return None
    fields = _GPT_HEADER.unpack_from(sector)
    length, checksum, own = fields[2], fields[3], fields[5]
    if not _GPT_HEADER.size <= length <= sector_size or own * sector_size != at:
        return None
    if binascii.crc32(sector[:16] + bytes(4) + sector[20:length]) != checksum:
        return None
    return _GptHeader(sector_size, fields[10:14], fields[9])


async def _gpt_table(read: ReadRange, header: _GptHeader) -> bytes | None:
    if header.entry_size < _GPT_ENTRY.size or header.table_bytes > _MAX_TABLE_BYTES:
        return None
    whole = -(-header.table_bytes // SECTOR) * SECTOR
    table = (await read(header.entries_at, whole))[: header.table_bytes]
    return table if binascii.crc32(table) == header.entries_crc else None


def _gpt(header: _GptHeader, table: bytes, size: int, warnings: list[str]) -> PartitionTable:
    slots = range(0, len(table) - header.entry_size + 1, header.entry_size)
    rows = [(number, _GPT_ENTRY.unpack_from(table, at)) for number, at in enumerate(slots, 1)]
    partitions = [_gpt_partition(number, row, header.sector_size) for number, row in rows if any(row[0])]
    warnings += [_beyond(each) for each in partitions if each.start_bytes + each.size_bytes > size]
    return PartitionTable(
        scheme="gpt",
        sector_size=header.sector_size,
        disk_id=header.disk_id,
        partitions=tuple(partitions),
        warnings=tuple(warnings),
    )


def _gpt_partition(
    number: int, row: tuple[bytes, bytes, int, int, int, bytes], sector_size: int
) -> Partition:
    kind, own, first, last, flags, name = row
    guid = str(uuid.UUID(bytes_le=kind))
    return Partition(
        number=number,
        start_bytes=first * sector_size,
        size_bytes=max(last - first + 1, 0) * sector_size,
        type=_GPT_TYPES.get(guid, guid),
        name=name.decode("utf-16-le", "replace").partition("\0")[0],
        id=str(uuid.UUID(bytes_le=own)),
        bootable=bool(flags & _BOOT_FLAG),
    )
