"""Images made to be refused: each maker writes one into a directory and gives its path."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

from tests.workers.conftest import convert_to, qemu_img

Maker = Callable[[Path, Path], Path]
"""Takes the directory to write into, and a sound raw disk."""

_SUFFIXES = {"vpc": "vhd"}


def patched(driver: str, *changes: tuple[int, bytes], size: int | None = None) -> Maker:
    """A sound image with some bytes replaced, made longer by a hole if a size is given."""

    def make(place: Path, disk: Path) -> Path:
        image = convert_to(disk, place / f"image.{_SUFFIXES.get(driver, driver)}", driver)
        with image.open("r+b") as file:
            for at, value in changes:
                file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
                file.write(value)
            if size is not None:
                file.truncate(size)
        return image

    return make


def created(driver: str, *options: str, size: str = "1M") -> Maker:
    def make(place: Path, disk: Path) -> Path:
        image = place / f"image.{driver}"
        qemu_img(
            "create",
            "-q",
            "-f",
            driver,
            *(each.format(disk=disk, place=place) for each in options),
            image,
            size,
        )
        return image

    return make


def written(name: str, content: bytes) -> Maker:
    def make(place: Path, _disk: Path) -> Path:
        (place / name).write_bytes(content)
        return place / name

    return make


def descriptor(*lines: str) -> Maker:
    """A VMDK whose content is in the files that these lines name."""
    text = "\n".join(
        ['# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"', *lines]
    )
    return written("image.vmdk", f"{text}\n".encode())


def embedded(old: bytes, new: bytes) -> Maker:
    """A sparse VMDK with another text written over the place of one in its descriptor."""

    def make(place: Path, disk: Path) -> Path:
        image = convert_to(disk, place / "image.vmdk", "vmdk")
        data = bytearray(image.read_bytes())
        at = data.index(old)
        data[at : at + len(new)] = new
        image.write_bytes(data)
        return image

    return make


def special(make: Callable[[Path], None]) -> Maker:
    def made(place: Path, _disk: Path) -> Path:
        make(place / "image")
        return place / "image"

    return made


def with_differencing_head(place: Path, disk: Path) -> Path:
    """A dynamic VHD by its footer, and a differencing one by the copy at its start."""
    image = patched("vpc")(place, disk)
    data = bytearray(image.read_bytes())
    data[60:64] = struct.pack(">I", 4)
    data[64:68] = struct.pack(">I", ~sum(data[:64] + data[68:512]) & 0xFFFFFFFF)
    image.write_bytes(data)
    return image


def with_parent_locator(place: Path, disk: Path) -> Path:
    """A VHDX whose file parameters say that it has a parent."""
    image = patched("vhdx")(place, disk)
    data = bytearray(image.read_bytes())
    metadata = data.index(b"metadata")
    parameters = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
    entry = data.index(parameters, metadata)
    (offset,) = struct.unpack_from("<I", data, entry + 16)
    data[metadata + offset + 4] |= 2
    image.write_bytes(data)
    return image


def with_pending_log(place: Path, disk: Path) -> Path:
    """A VHDX whose headers name a log that was never replayed."""
    log = (48, b"\x5a" * 16)
    return patched("vhdx", *((start + log[0], log[1]) for start in (64 << 10, 128 << 10)))(place, disk)


def talkative(place: Path, disk: Path) -> Path:
    """A qcow2 with so many snapshots that describing it takes megabytes."""
    image = patched("qcow2")(place, disk)
    name = b"n" * 200
    entry = struct.pack(">QIHHIIQII", 0, 0, 1, len(name), 0, 0, 0, 0, 0) + b"1" + name
    table = entry.ljust(-(-len(entry) // 8) * 8, b"\0") * 30_000
    at = -(-image.stat().st_size // 65536) * 65536
    with image.open("r+b") as file:
        file.seek(60)
        file.write(struct.pack(">IQ", 30_000, at))
        file.seek(at)
        file.write(table.ljust(-(-len(table) // 65536) * 65536, b"\0"))
    return image
