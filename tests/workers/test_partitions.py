import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.conftest import DISK_BYTES, gpt, protective_mbr
from workers.partitions import PartitionTable, read_table

pytestmark = pytest.mark.anyio


async def table_of(content: bytes, size: int | None = None) -> PartitionTable:
    async def read(offset: int, length: int) -> bytes:
        return content[offset : offset + length]

    return await read_table(read, len(content) if size is None else size)


def entry(kind: int, first: int, sectors: int, status: int = 0) -> bytes:
    return struct.pack("<B3xB3xII", status, kind, first, sectors)


def signed(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


async def test_logical_partitions_are_numbered_from_five() -> None:
    disk = bytearray(4096 * 512)
    disk[:512] = signed(entry(0x83, 64, 100, 0x80), entry(0x05, 200, 3000))
    disk[200 * 512 : 201 * 512] = signed(entry(0x83, 8, 500), entry(0x05, 1000, 600))
    disk[1200 * 512 : 1201 * 512] = signed(entry(0x82, 8, 500))
    table = await table_of(bytes(disk))
    found = [(each.number, each.start_bytes // 512, each.type) for each in table.partitions]
    assert found == [(1, 64, "Linux"), (2, 200, "extended"), (5, 208, "Linux"), (6, 1208, "Linux swap")]


async def test_endless_chain_of_logical_partitions_ends_with_a_warning() -> None:
    disk = bytearray(1024 * 512)
    disk[:512] = signed(entry(0x05, 100, 500))
    disk[100 * 512 : 101 * 512] = signed(entry(0x83, 8, 10), entry(0x05, 0, 500))
    table = await table_of(bytes(disk))
    assert table.warnings == ("the chain of logical partitions does not end",)


async def test_partition_beyond_the_disk_is_warned_about() -> None:
    table = await table_of(signed(entry(0x83, 64, 100_000)) + bytes(1 << 20))
    assert table.warnings == ("partition 1 ends beyond the disk",)


async def test_two_damaged_tables_are_told_and_not_believed() -> None:
    primary, _ = gpt(DISK_BYTES)
    damaged = primary[:20] + b"X" + primary[21:]
    table = await table_of((protective_mbr(DISK_BYTES) + damaged).ljust(1 << 20, b"\0"))
    assert table.partitions == ()
    assert "both copies of the GPT are damaged" in table.warnings


async def test_fat_boot_sector_is_a_filesystem_not_a_table() -> None:
    sector = bytearray(signed())
    sector[:3], sector[82:90] = b"\xeb\x58\x90", b"FAT32   "
    table = await table_of(bytes(sector) + bytes(1 << 20))
    assert (table.scheme, table.filesystem) == ("none", "vfat")


@given(content=st.binary(max_size=2048), at=st.integers(0, 1024), noise=st.binary(max_size=600))
async def test_garbage_never_raises(content: bytes, at: int, noise: bytes) -> None:
    primary, _ = gpt(DISK_BYTES)
    disk = bytearray(protective_mbr(DISK_BYTES) + primary)
    disk[at : at + len(noise)] = noise
    await table_of(bytes(disk))
    await table_of(content)
    await table_of(signed(content[:64].ljust(64, b"\0")) + content, 1 << 30)
