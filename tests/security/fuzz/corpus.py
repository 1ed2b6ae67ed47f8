"""Small valid images of every format, made by qemu-img when they are needed, and where their fields lie."""

import io
import itertools
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from subjects.spec import ImageFormat
from tests.security.fuzz.sums import mend
from tests.workers.conftest import gpt, protective_mbr, qemu_img
from tests.workers.packages import appliance
from workers.formats import read_header
from workers.formats.header import ImageBytes

MIB = 1 << 20
Order = Literal["big", "little"]
DISK_BYTES = 4 * MIB
_PATTERN = bytes(range(256)) * 64


class Field(msgspec.Struct, frozen=True):
    """A number in a file: where it lies (from the end if negative), its width in bytes, its byte order."""

    at: int
    width: int
    order: Order = "big"


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """A valid image: its files by name, `main` being the one that a job names, `format` what it is."""

    name: str
    format: ImageFormat
    main: str
    files: dict[str, bytes]
    fields: tuple[Field, ...] = ()


def _fields(order: Order, base: int, *places: tuple[int, int]) -> tuple[Field, ...]:
    return tuple(Field(base + at, width, order) for at, width in places)


_QCOW2 = _fields(
    "big", 0,
    (4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4),
    (64, 8), (72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 1), (112, 4), (116, 4),
)  # fmt: skip
_VMDK_HEADER = (
    (4, 4), (8, 4), (12, 8), (20, 8), (28, 8), (36, 8), (44, 4), (48, 8), (56, 8), (64, 8), (72, 1), (77, 2),
)  # fmt: skip
_VMDK = _fields("little", 0, *_VMDK_HEADER)
_STREAM = (*_VMDK, *_fields("little", -1024, *_VMDK_HEADER))
_VHD_FOOTER = ((8, 4), (12, 4), (16, 8), (28, 4), (40, 8), (48, 8), (56, 2), (58, 1), (59, 1), (60, 4))
_VHD = (
    *_fields("big", -512, *_VHD_FOOTER),
    *_fields("big", 0, *_VHD_FOOTER),
    *_fields("big", 512, (8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (576, 4)),
)
_VHDX = (
    *itertools.chain.from_iterable(
        _fields("little", at, (8, 8), (48, 8), (64, 2), (66, 2), (68, 4), (72, 8))
        for at in (64 << 10, 128 << 10)
    ),
    *itertools.chain.from_iterable(
        _fields("little", at, (8, 4), (32, 8), (40, 4), (44, 4), (64, 8), (72, 4))
        for at in (192 << 10, 256 << 10)
    ),
)
_VDI = _fields(
    "little", 0,
    (68, 4), (72, 4), (76, 4), (80, 4), (340, 4), (344, 4), (360, 4), (368, 8), (376, 4), (380, 4),
    (384, 4), (388, 4), (392, 8), (408, 8), (424, 8), (440, 8),
)  # fmt: skip
_MBR = tuple(
    field
    for entry in range(4)
    for field in _fields("little", 446 + 16 * entry, (0, 1), (4, 1), (8, 4), (12, 4))
)
_GPT = (
    *_fields("little", 512, (8, 4), (12, 4), (24, 8), (32, 8), (72, 8), (80, 4), (84, 4)),
    *_fields("little", 1024, (0, 8), (32, 8), (40, 8), (48, 8)),
)

FIELDS: Mapping[str, tuple[Field, ...]] = {
    "raw": (*_MBR, *_GPT),
    "qcow2": _QCOW2,
    "vmdk": _VMDK,
    "stream": _STREAM,
    "vpc": _VHD,
    "vhdx": _VHDX,
    "vdi": _VDI,
}

_MADE: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "qcow2": ("qcow2", "qcow2", ()),
    "qcow2 of version 2": ("qcow2", "qcow2", ("-o", "compat=0.10")),
    "qcow2, compressed": ("qcow2", "qcow2", ("-c",)),
    "qcow2 of small clusters": ("qcow2", "qcow2", ("-o", "cluster_size=512,refcount_bits=64")),
    "qcow2 of halved clusters": ("qcow2", "qcow2", ("-o", "extended_l2=on")),
    "vmdk": ("vmdk", "vmdk", ()),
    "vmdk, stream": ("vmdk", "stream", ("-o", "subformat=streamOptimized")),
    "vmdk of a flat file": ("vmdk", "text", ("-o", "subformat=monolithicFlat")),
    "vmdk of sparse files": ("vmdk", "text", ("-o", "subformat=twoGbMaxExtentSparse")),
    "vhd": ("vpc", "vpc", ("-o", "force_size=on")),
    "vhd, fixed": ("vpc", "vpc", ("-o", "subformat=fixed,force_size=on")),
    "vhdx": ("vhdx", "vhdx", ("-o", "block_size=1M")),
    "vdi": ("vdi", "vdi", ()),
    "vdi, static": ("vdi", "vdi", ("-o", "static=on")),
}
"""By name: qemu's driver, whose fields it has, and how it is made."""

_FORMATS: Mapping[str, ImageFormat] = {
    "qcow2": "qcow2",
    "vmdk": "vmdk",
    "vpc": "vhd",
    "vhdx": "vhdx",
    "vdi": "vdi",
}
"""The name of a format, which is the suffix of its files too, by qemu's."""


def disk() -> bytes:
    """A partitioned disk with content at its start, in its middle and at its end."""
    content = bytearray(DISK_BYTES)
    primary, backup = gpt(DISK_BYTES)
    head = protective_mbr(DISK_BYTES) + primary
    content[: len(head)] = head
    content[-len(backup) :] = backup
    for at in (MIB, 2 * MIB + 4096, 3 * MIB + 512):
        content[at : at + len(_PATTERN)] = _PATTERN
    content[MIB + 1080 : MIB + 1082] = b"\x53\xef"
    return bytes(content)


def seeds(place: Path) -> list[Seed]:
    """All seeds, made in a directory of their own; always the same ones."""
    raw = place / "disk.img"
    raw.write_bytes(disk())
    made = [_made(place, raw, name) for name in _MADE]
    packed = {each.name: each for each in made}["vmdk, stream"].files["image.vmdk"]
    return [
        Seed(name="raw", format="raw", main="image.img", files={"image.img": disk()}, fields=FIELDS["raw"]),
        _with_snapshot(place, raw),
        *made,
        _ova("ova", appliance({"disk.vmdk": packed})),
        _ova("ova with a manifest", appliance({"disk.vmdk": packed}, algorithm="sha256")),
        Seed(name="ovf", format="vmdk", main="vm.ovf", files=appliance({"disk.vmdk": packed})),
    ]


def _ova(name: str, files: Mapping[str, bytes]) -> Seed:
    stored = io.BytesIO()
    with tarfile.open(fileobj=stored, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for each, data in files.items():
            member = tarfile.TarInfo(each)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return Seed(name=name, format="vmdk", main="image.ova", files={"image.ova": stored.getvalue()})


def _made(place: Path, raw: Path, name: str, after: Callable[[Path], None] = lambda _: None) -> Seed:
    driver, fields, options = _MADE[name]
    directory = place / name.replace(" ", "-").replace(",", "")
    directory.mkdir()
    main = directory / f"image.{_FORMATS[driver]}"
    qemu_img("convert", "-f", "raw", "-O", driver, *options, raw, main)
    after(main)
    files = {each.name: settled(each.read_bytes()) for each in sorted(directory.iterdir())}
    places = (*FIELDS.get(fields, ()), *_metadata_fields(files[main.name]))
    return Seed(name=name, format=_FORMATS[driver], main=main.name, files=files, fields=places)


def _with_snapshot(place: Path, raw: Path) -> Seed:
    (place / "snapshot").mkdir()
    seed = _made(place / "snapshot", raw, "qcow2", lambda image: qemu_img("snapshot", "-c", "one", image))
    return msgspec.structs.replace(seed, name="qcow2 with a snapshot")


def settled(data: bytes) -> bytes:
    """The image without what is another one each time: identities and times. A seed gives one mutant."""
    fixed = bytearray(data)
    for magic, places in _IDENTITIES.items():
        if magic in data[:512] or magic in data[-512:]:
            for at, value in places:
                start = at if at >= 0 else len(data) + at
                fixed[start : start + len(value)] = value
    if data.startswith(b"QFI\xfb") and int.from_bytes(data[60:64], "big"):
        snapshots = int.from_bytes(data[64:72], "big")
        fixed[snapshots + 16 : snapshots + 32] = bytes(16)
    _settle_content_id(fixed)
    mend(fixed)
    return bytes(fixed)


def _settle_content_id(data: bytearray) -> None:
    """The number is written without its leading zeros; what follows the text makes up for them."""
    found = _CONTENT_ID.search(data)
    if found:
        data[found.start() : found.end()] = b"\nCID=12345678"
        end = data.index(b"\0", found.start())
        del data[end : end + 13 - len(found[0])]


_CONTENT_ID = re.compile(rb"\nCID=[0-9a-f]{1,8}")
_IDENTITY = b"\1" * 16
_IDENTITIES: Mapping[bytes, tuple[tuple[int, bytes], ...]] = {
    b"\x7f\x10\xda\xbe": ((392, _IDENTITY), (408, _IDENTITY)),
    b"conectix": ((24, bytes(4)), (68, _IDENTITY), (24 - 512, bytes(4)), (68 - 512, _IDENTITY)),
    b"vhdxfile": (
        *((at + 8, bytes([at >> 16]) + bytes(7)) for at in (65536, 131072)),
        *((at + field, _IDENTITY) for at in (65536, 131072) for field in (16, 32)),
        (MIB, bytes(MIB)),
        (3 * MIB + 65536 + 16, _IDENTITY),
    ),
}
"""By a format's mark: where it keeps identities, times and a spent log, and what comes in their place."""


def _metadata_fields(data: bytes) -> tuple[Field, ...]:
    """The items that a VHDX describes its disk by; they lie where its own tables say."""
    at = data.find(b"metadata", MIB) if data.startswith(b"vhdxfile") else -1
    if at < 0:
        return ()
    entries = [(32 + 32 * row + 16 + 4 * part, 4) for row in range(5) for part in range(3)]
    items = [(65536 + 4 * word, 4) for word in range(4)]
    return _fields("little", at, (10, 2), *entries, *items)


def is_valid(path: Path) -> bool:
    """Whether our own readers find nothing in a file that has a header but what a job may allow."""
    with path.open("rb") as file:
        header = read_header(ImageBytes(file.fileno()))
    return header is None or all(each.unless for each in header.findings)
