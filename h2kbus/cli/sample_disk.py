"""A real disk with content, made without privileges: GPT, one partition, an ext4 filesystem with files."""

import binascii
import os
import shutil
import struct
import subprocess
import uuid
from pathlib import Path
from typing import BinaryIO, Final

from h2kbus.errors import ErrorCode, OperationFailed

MIB: Final = 1 << 20
PARTITION_AT: Final = 1 * MIB
_SECTOR: Final = 512
_LINUX: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
_SECONDS: Final = 120
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"


def make_disk(disk: Path, *, size_mib: int = 64, content_mib: int = 12) -> Path:
    """Write a raw disk of `size_mib` whose filesystem holds `content_mib` of random files.

    Raises OperationFailed with TOOL_MISSING without mkfs.ext4.
    """
    filesystem = disk.with_suffix(".ext4")
    tree = disk.with_suffix(".files")
    partition_bytes = (size_mib - 2) * MIB
    try:
        _write_files(tree, content_mib)
        _make_filesystem(filesystem, tree, partition_bytes)
        _assemble(disk, filesystem, size_mib * MIB, partition_bytes)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        filesystem.unlink(missing_ok=True)
    return disk


def convert_sample(source: Path, target: Path, image_format: str, *options: str) -> Path:
    """Write the raw disk in another of qemu's formats."""
    _run("qemu-img", "convert", "-f", "raw", "-O", image_format, *options, str(source), str(target))
    return target


def _write_files(tree: Path, content_mib: int) -> None:
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hostname").write_text("guest\n", encoding="ascii")
    for number in range(content_mib):
        (tree / f"data-{number}.bin").write_bytes(os.urandom(MIB))


def _make_filesystem(filesystem: Path, tree: Path, size: int) -> None:
    with filesystem.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-F", "-L", "guest", "-d", str(tree), str(filesystem))


def _assemble(disk: Path, filesystem: Path, disk_bytes: int, partition_bytes: int) -> None:
    primary, backup = _gpt(disk_bytes, partition_bytes)
    with disk.open("wb") as file, filesystem.open("rb") as content:
        file.truncate(disk_bytes)
        file.write(_protective_mbr(disk_bytes) + primary)
        file.seek(PARTITION_AT)
        _copy_sparse(content, file)
        file.seek(disk_bytes - len(backup))
        file.write(backup)


def _copy_sparse(source: BinaryIO, target: BinaryIO) -> None:
    """Copy without writing what is zero, so that the disk stays as small as its content."""
    while chunk := source.read(MIB):
        if chunk.count(0) == len(chunk):
            target.seek(len(chunk), os.SEEK_CUR)
        else:
            target.write(chunk)


def _protective_mbr(disk_bytes: int) -> bytes:
    sectors = disk_bytes // _SECTOR - 1
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, sectors)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def _gpt(disk_bytes: int, partition_bytes: int) -> tuple[bytes, bytes]:
    """The header with its table, and the backup, as the UEFI specification (5.3) lays them out."""
    last = disk_bytes // _SECTOR - 1
    first = PARTITION_AT // _SECTOR
    name = "root".encode("utf-16-le").ljust(72, b"\0")
    end = first + partition_bytes // _SECTOR - 1
    entry = struct.pack("<16s16sQQQ", _LINUX, uuid.uuid4().bytes_le, first, end, 0) + name
    table = entry.ljust(128 * 128, b"\0")
    disk_id = uuid.uuid4().bytes_le

    def header(own: int, other: int, table_at: int) -> bytes:
        fields = (own, other, 34, last - 33, disk_id, table_at, 128, 128, binascii.crc32(table))
        blank = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
        return (blank[:16] + struct.pack("<I", binascii.crc32(blank)) + blank[20:]).ljust(_SECTOR, b"\0")

    return header(1, last, 2) + table, table + header(last, 1, last - 32)


def _run(*argv: str) -> None:
    found = shutil.which(argv[0], path=os.pathsep.join((os.environ.get("PATH", ""), _PATH)))
    if found is None:
        raise OperationFailed(ErrorCode.TOOL_MISSING, f"{argv[0]} is needed to make a sample disk")
    done = subprocess.run([found, *argv[1:]], check=False, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode != 0:
        raise OperationFailed(ErrorCode.TOOL_FAILED, f"{argv[0]}: {done.stderr.strip()}")


def find_tool(name: str) -> str:
    """Where a program is. Raises OperationFailed with TOOL_MISSING."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), _PATH)))
    if found is None:
        raise OperationFailed(ErrorCode.TOOL_MISSING, f"{name} is needed to make and measure sample disks")
    return found
