"""The eleven classes of hostile images: none of them converts, and nothing of them becomes visible."""

import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.workers.conftest import Bench
from tests.workers.hostile import (
    Maker,
    created,
    descriptor,
    embedded,
    patched,
    special,
    talkative,
    with_differencing_head,
    with_parent_locator,
    with_pending_log,
    written,
)

pytestmark = pytest.mark.anyio

UNSAFE, CORRUPT, MISMATCH = ErrorCode.IMAGE_UNSAFE, ErrorCode.IMAGE_CORRUPT, ErrorCode.FORMAT_MISMATCH
BIG = 2 << 40
SMALL_GRAINS = struct.pack("<QQ", 1 << 36, 1)
GOOD = 'RW 1 FLAT "image.vmdk" 0'
JSON = 'json:{{"file.filename":"{disk}"}}'


def flat(name: str) -> Maker:
    return descriptor(f'RW 1 FLAT "{name}" 0')


def hinting(assignment: bytes) -> Maker:
    hint = b"# Disk DescriptorFile\nparentFileNameHint" + assignment
    return embedded(b"# Disk Descr", hint + b"\n#")


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


CASES: dict[str, list[tuple[str, Maker, ErrorCode]]] = {
    "1 backing file": [
        ("qcow2", created("qcow2", "-b", "{disk}", "-F", "raw"), UNSAFE),
        ("qcow2 of version 2", created("qcow2", "-o", "compat=0.10", "-b", "{disk}", "-F", "raw"), UNSAFE),
        ("qcow2 by a json name", created("qcow2", "-b", JSON, "-F", "raw"), UNSAFE),
        ("qed", created("qed", "-b", "{disk}", "-F", "raw"), MISMATCH),
        ("vmdk by name alone", hinting(b'="/x"'), UNSAFE),
        ("vmdk by a name without =", hinting(b':"/x"'), UNSAFE),
    ],
    "2 external data file": [
        ("qcow2", created("qcow2", "-o", "data_file={place}/data"), UNSAFE),
        ("qcow2, raw", created("qcow2", "-o", "data_file={place}/data,data_file_raw=on"), UNSAFE),
        ("qcow2 by the flag alone", patched("qcow2", (79, b"\4")), UNSAFE),
    ],
    "3 extents elsewhere": [
        ("absolute", flat("/etc/shadow"), UNSAFE),
        ("upwards", flat("../../etc/shadow"), UNSAFE),
        ("the directory above", flat(".."), UNSAFE),
        ("below", flat("sub/disk"), UNSAFE),
        ("device", flat("/dev/vda"), UNSAFE),
        ("windows device", flat(r"\\.\PhysicalDrive0"), UNSAFE),
        ("protocol", flat("nbd:localhost:10809"), UNSAFE),
        ("json", flat('json:{\\"driver\\":\\"null-co\\"}'), UNSAFE),
        ("signed sectors", descriptor(GOOD, 'RW +1 FLAT "/etc/shadow" 0'), UNSAFE),
        ("two lines", descriptor(GOOD, "RW", '1 FLAT "/etc/shadow" 0'), UNSAFE),
        ("signed offset", descriptor(GOOD, 'RW 1 FLAT "image.vmdk" +1'), UNSAFE),
        ("other spaces", descriptor(GOOD, 'RW\v1 FLAT "/etc/shadow" 0'), UNSAFE),
        ("open quotes", descriptor('RW 1 SPARSE "x', 'RW 1 FLAT "/etc/shadow" 0'), UNSAFE),
        ("endless number", descriptor(f'RW {"9" * 5000} FLAT "image.vmdk" 0'), UNSAFE),
        ("no name", descriptor("RW 1 FLAT"), UNSAFE),
        ("of no file", descriptor(GOOD, "RW 1 ZERO"), UNSAFE),
    ],
    "4 another format than it seems": [
        ("damaged vmdk", patched("vmdk", (0, b"\0")), CORRUPT),
        ("damaged qcow2", patched("qcow2", (0, b"\0")), CORRUPT),
        ("damaged vdi", patched("vdi", (64, b"\0")), CORRUPT),
        ("damaged vhdx", patched("vhdx", (0, b"\0")), CORRUPT),
        ("damaged vhd", patched("vpc", (0, b"\0"), (-512, b"\0")), CORRUPT),
        ("damaged vhd footer", patched("vpc", (-512, b"\0")), CORRUPT),
        ("damaged E01", written("image.E01", b"\0" * 4096), CORRUPT),
        ("E01", written("image.E01", b"EVF\x09\x0d\x0a\xff\x00" + bytes(4096)), MISMATCH),
        ("E01 of any name", written("image", b"EVF\x09\x0d\x0a\xff\x00" + bytes(4096)), MISMATCH),
        ("damaged ova", written("image.ova", b"\0" * 4096), CORRUPT),
        ("damaged ovf", written("image.ovf", b"\0" * 4096), CORRUPT),
    ],
    "6 differencing disk": [
        ("vhd by its head", with_differencing_head, UNSAFE),
        ("vhdx", with_parent_locator, UNSAFE),
        ("vdi by its type", patched("vdi", (76, b"\4")), UNSAFE),
        ("vdi by its parent", patched("vdi", (440, b"\1")), UNSAFE),
        ("vmdk", created("vmdk", "-b", "{place}/base.vmdk", "-F", "vmdk"), UNSAFE),
        ("vmdk by its parent's id", embedded(b"parentCID=ffffffff", b"parentCID=12345678"), UNSAFE),
        ("ESX snapshot", written("image.vmdk", b"COWD" + bytes(4096)), UNSAFE),
    ],
    "7 encrypted": [
        ("qcow2 by LUKS", patched("qcow2", (32, struct.pack(">I", 2))), UNSAFE),
        ("qcow2 by AES", patched("qcow2", (32, struct.pack(">I", 1))), UNSAFE),
        ("LUKS", written("image", b"LUKS\xba\xbe" + bytes(4096)), MISMATCH),
    ],
    "8 sizes beyond reason": [
        ("qcow2", created("qcow2", "-o", "cluster_size=2M", size="100T"), UNSAFE),
        ("vmdk", patched("vmdk", (12, struct.pack("<Q", 1 << 40))), UNSAFE),
        ("vdi", patched("vdi", (368, struct.pack("<Q", 1 << 60))), UNSAFE),
        ("qcow2 L1 table", patched("qcow2", (36, struct.pack(">I", 1 << 31)), size=BIG), UNSAFE),
        ("vmdk directory", patched("vmdk", (12, SMALL_GRAINS), (44, b"\1\0\0\0"), size=BIG), UNSAFE),
        ("vhd table", patched("vpc", (512 + 28, b"\xff" * 4)), UNSAFE),
    ],
    "9 endless output": [("qcow2", talkative, UNSAFE)],
    "10 pending log": [("vhdx", with_pending_log, CORRUPT)],
    "11 no regular file": [
        ("directory", special(Path.mkdir), UNSAFE),
        ("named pipe", special(os.mkfifo), UNSAFE),
        ("socket", special(bind), UNSAFE),
        ("link", special(link), UNSAFE),
        ("device", lambda _place, _disk: Path("/dev/zero"), UNSAFE),
    ],
}  # fmt: skip
"""By class and name. The fifth class, names that tools interpret, is one of names to be accepted."""

TABLE = [
    pytest.param(make, code, id=f"{number}: {name}")
    for number, cases in CASES.items()
    for name, make, code in cases
]


@pytest.mark.parametrize(("make", "code"), TABLE)
async def test_hostile_image_never_converts(
    bench: Bench, raw_disk: Path, vmdk: Path, tmp_path: Path, make: Maker, code: ErrorCode
) -> None:
    (tmp_path / "base.vmdk").symlink_to(vmdk)
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", make(tmp_path, raw_disk))
    assert caught.value.error_code is code
    assert "\n" not in str(caught.value)
    assert bench.names() == []


@pytest.mark.parametrize("driver", ["qcow2", "vmdk", "vdi", "vpc", "vhdx"])
async def test_image_declared_as_raw_is_not_read_as_raw(
    bench: Bench, raw_disk: Path, tmp_path: Path, driver: str
) -> None:
    image = patched(driver)(tmp_path, raw_disk).rename(tmp_path / "image.img")
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", image, format="raw")
    assert caught.value.error_code is ErrorCode.FORMAT_MISMATCH


NAMES = [
    "json:{}",
    "nbd:localhost:10809",
    "ssh:host",
    "http:",
    "-rf",
    "--help",
    "a,b=c",
    "fat:rw:x",
    "driver=raw",
    "%s",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("several_files", [False, True])
async def test_name_that_tools_interpret_is_only_a_name(
    bench: Bench, raw_disk: Path, tmp_path: Path, name: str, several_files: bool
) -> None:
    place = tmp_path / name
    place.mkdir()
    options: dict[str, Any] = {"parameters": {"output_format": "raw", "output_name": "result"}}
    if several_files:
        (place / "part").write_bytes(bytes(512))
        image = flat("part")(place, raw_disk).rename(place / name)
    else:
        image = written(name, bytes(512))(place, raw_disk)
    await bench.run("convert", image, **options)
    assert (bench.out / "result").read_bytes() == bytes(512)
