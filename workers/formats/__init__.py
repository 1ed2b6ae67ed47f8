"""Disk image formats: what each is called, and how to recognise one without trusting a tool."""

from collections.abc import Callable, Mapping

import msgspec

from subjects.spec import ImageFormat
from workers.formats import qcow2, vdi, vhd, vhdx, vmdk
from workers.formats.header import Finding, Header, ImageBytes
from workers.formats.tar import is_archive

__all__ = ["FORMATS", "Finding", "Format", "Header", "ImageBytes", "foreign_format", "read_header"]


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """A format by the name that qemu gives it. `checked` says that qemu-img can check it.

    `out_of_order` says that qemu's driver may be written to by several requests at once. With the one
    for vdi (qemu 7.2) such writes were seen to leave a header that counts blocks twice.
    """

    qemu: str
    checked: bool = True
    out_of_order: bool = False


FORMATS: Mapping[ImageFormat, Format] = {
    "raw": Format(qemu="raw", checked=False, out_of_order=True),
    "qcow2": Format(qemu="qcow2", out_of_order=True),
    "vmdk": Format(qemu="vmdk"),
    "vdi": Format(qemu="vdi"),
    "vhd": Format(qemu="vpc", checked=False),
    "vhdx": Format(qemu="vhdx"),
}

_READERS: tuple[Callable[[ImageBytes], Header | None], ...] = (
    qcow2.read,
    vmdk.read,
    vhdx.read,
    vdi.read,
    vhd.read,
)

_FOREIGN: Mapping[bytes, str] = {
    b"QED\0": "a QED image",
    b"WithoutFreeSpace": "a Parallels image",
    b"WithouFreSpacExt": "a Parallels image",
    b"EVF\x09\x0d\x0a\xff\x00": "an Expert Witness (E01) image",
    b"EVF2\x0d\x0a\x81\x00": "an Expert Witness (Ex01) image",
    b"AFF10\x0d\x0a\x00": "an AFF image",
    b"Bochs Virtual HD Image": "a Bochs image",
    b"\x1f\x8b\x08": "compressed by gzip",
    b"\xfd7zXZ\0": "compressed by xz",
    b"BZh": "compressed by bzip2",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"LUKS\xba\xbe": "encrypted by LUKS",
}


def read_header(image: ImageBytes) -> Header | None:
    """Recognise an image by its header; None if it can only be raw."""
    return next((header for each in _READERS if (header := each(image))), None)


def foreign_format(image: ImageBytes) -> str | None:
    """Say what a file is that no operation can read and that is surely not a raw disk."""
    head = image.at(0, 512)
    if is_archive(image):
        return "a tar archive inside another container"
    if image.at(image.size - 512, 4) == b"koly":
        return "an Apple disk image (dmg)"
    return next((words for magic, words in _FOREIGN.items() if head.startswith(magic)), None)
