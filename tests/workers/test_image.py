import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.spec import ImageSpec
from tests.workers.conftest import convert_to, qemu_img
from workers.formats import Finding
from workers.image import Gate, open_image

pytestmark = pytest.mark.anyio


def ignore(done: int, total: int) -> None:
    """Nobody listens to the checksum's progress."""


async def refusal(path: Path, **more: Any) -> ErrorCode:
    """The code with which the gate refuses an image before it looks beyond its header."""
    with pytest.raises(OperationFailed) as caught:
        async with open_image(ImageSpec(path=str(path), **more), ignore, Gate(scratch=path.parent)):
            pass
    assert "\n" not in str(caught.value)
    return caught.value.error_code


async def findings(path: Path) -> list[Finding]:
    async with open_image(ImageSpec(path=str(path)), ignore, Gate(scratch=path.parent)) as image:
        return list(image.findings)


async def test_missing_image(tmp_path: Path) -> None:
    assert await refusal(tmp_path / "no") is ErrorCode.IMAGE_NOT_FOUND


def make_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(bytes(4096))
    path.symlink_to(target)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_null(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_link, make_socket, make_null])
async def test_only_a_regular_file_is_accepted(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "image")
    assert await refusal(tmp_path / "image") is ErrorCode.IMAGE_UNSAFE


async def test_device_is_refused() -> None:
    assert await refusal(Path("/dev/null")) is ErrorCode.IMAGE_UNSAFE


async def test_unreadable_image(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    image.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        assert await refusal(image) is ErrorCode.IMAGE_UNREADABLE
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


async def test_other_size_than_described(raw_disk: Path) -> None:
    assert await refusal(raw_disk, size_bytes=1) is ErrorCode.SIZE_MISMATCH


async def test_other_checksum_than_described(raw_disk: Path) -> None:
    assert await refusal(raw_disk, checksum="sha256:" + "0" * 64) is ErrorCode.CHECKSUM_MISMATCH


@pytest.mark.parametrize("declared", ["raw", "qcow2", "vdi", "vhd", "vhdx"])
async def test_other_format_than_declared(vmdk: Path, declared: str) -> None:
    assert await refusal(vmdk, format=declared) is ErrorCode.FORMAT_MISMATCH


async def test_declared_format_without_its_header(raw_disk: Path) -> None:
    assert await refusal(raw_disk, format="vmdk") is ErrorCode.FORMAT_MISMATCH


@pytest.mark.parametrize("declared", [None, "raw"])
@pytest.mark.parametrize("suffix", ["vmdk", "qcow2", "vdi", "vhd", "vhdx"])
async def test_name_that_promises_a_header_is_never_read_as_raw(
    tmp_path: Path, suffix: str, declared: str | None
) -> None:
    image = tmp_path / f"image.{suffix}"
    image.write_bytes(bytes(65536))
    assert await refusal(image, format=declared) is ErrorCode.IMAGE_CORRUPT


async def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    assert await refusal(tmp_path / "image") is ErrorCode.IMAGE_CORRUPT


async def test_archive_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\x1f\x8b\x08" + bytes(4096))
    assert await refusal(tmp_path / "image") is ErrorCode.FORMAT_MISMATCH


@pytest.mark.parametrize("driver", ["qcow2", "vmdk", "vdi", "vpc", "vhdx"])
async def test_sound_image_has_no_findings(raw_disk: Path, tmp_path: Path, driver: str) -> None:
    assert await findings(convert_to(raw_disk, tmp_path / "image", driver)) == []


async def unsafe_reason(path: Path) -> str:
    async with open_image(ImageSpec(path=str(path)), ignore, Gate(scratch=path.parent)) as image:
        with pytest.raises(OperationFailed) as caught:
            _ = image.disk
    assert caught.value.error_code is ErrorCode.IMAGE_UNSAFE
    return str(caught.value)


async def test_qcow2_with_a_backing_file(raw_disk: Path, tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-b", raw_disk, "-F", "raw", tmp_path / "image")
    assert "backing file" in await unsafe_reason(tmp_path / "image")


async def test_qcow2_with_an_external_data_file(tmp_path: Path) -> None:
    data = f"data_file={tmp_path / 'data'}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", data, tmp_path / "image", "1M")
    assert "external data file" in await unsafe_reason(tmp_path / "image")


async def test_encrypted_qcow2(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "image", "1M")
    with (tmp_path / "image").open("r+b") as file:
        file.seek(32)
        file.write(struct.pack(">I", 2))
    assert "encrypted (LUKS)" in await unsafe_reason(tmp_path / "image")


async def test_vmdk_delta(vmdk: Path, tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "vmdk", "-b", vmdk, "-F", "vmdk", tmp_path / "image")
    assert "differencing" in await unsafe_reason(tmp_path / "image")


@pytest.mark.parametrize("name", ["/etc/shadow", "../secret", "nbd:localhost:1", "sub/disk.vmdk"])
async def test_vmdk_extent_outside_its_directory(tmp_path: Path, name: str) -> None:
    text = f'# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\nRW 2048 FLAT "{name}" 0\n'
    (tmp_path / "image.vmdk").write_text(text)
    assert "outside its directory" in await unsafe_reason(tmp_path / "image.vmdk")


async def test_vmdk_extent_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "extent").symlink_to("/etc/passwd")
    text = '# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\nRW 1 FLAT "extent" 0\n'
    (tmp_path / "image.vmdk").write_text(text)
    assert await refusal(tmp_path / "image.vmdk") is ErrorCode.IMAGE_UNSAFE


async def test_vmdk_without_capacity_would_hide_a_descriptor(vmdk: Path, tmp_path: Path) -> None:
    data = bytearray(vmdk.read_bytes())
    data[12:20] = bytes(8)
    (tmp_path / "image.vmdk").write_bytes(data)
    assert "no capacity" in await unsafe_reason(tmp_path / "image.vmdk")


async def test_vhd_differencing(raw_disk: Path, tmp_path: Path) -> None:
    image = convert_to(raw_disk, tmp_path / "image.vhd", "vpc")
    data = bytearray(image.read_bytes())
    footer = data[-512:]
    footer[60:64] = struct.pack(">I", 4)
    footer[64:68] = struct.pack(">I", ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF)
    image.write_bytes(data[:-512] + footer)
    assert "differencing" in await unsafe_reason(image)


@pytest.mark.parametrize(("at", "value"), [(76, b"\4"), (424, b"\1")])
async def test_vdi_differencing(raw_disk: Path, tmp_path: Path, at: int, value: bytes) -> None:
    image = convert_to(raw_disk, tmp_path / "image.vdi", "vdi")
    with image.open("r+b") as file:
        file.seek(at)
        file.write(value)
    assert "differencing" in await unsafe_reason(image)


async def test_disk_beyond_every_limit(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", tmp_path / "image", "100T")
    assert "limit" in await unsafe_reason(tmp_path / "image")


async def test_exchanged_image_is_noticed(raw_disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.img"
    image.write_bytes(raw_disk.read_bytes()[:65536])
    async with open_image(ImageSpec(path=str(image)), ignore, Gate(scratch=image.parent)) as opened:
        image.unlink()
        image.write_bytes(raw_disk.read_bytes()[:65536])
        with pytest.raises(OperationFailed, match="exchanged"):
            opened.require_unchanged()
