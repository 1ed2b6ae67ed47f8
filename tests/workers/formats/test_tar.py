import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from h2kbus.errors import ErrorCode
from tests.workers.packages import pack
from workers.formats.header import ImageBytes, Refused
from workers.formats.tar import MAX_MEMBERS, Member, read_members

FILES = {"vm.ovf": b"<x/>", "disk.vmdk": b"content" * 300, "empty": b""}


def members_of(path: Path) -> dict[str, Member]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_members(ImageBytes(descriptor))
    finally:
        os.close(descriptor)


def refusal(path: Path) -> ErrorCode:
    with pytest.raises(Refused) as caught:
        members_of(path)
    return caught.value.finding.code


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_content_is_found_where_it_lies(tmp_path: Path, layout: int) -> None:
    files = {**FILES, "n" * 200 if layout != tarfile.USTAR_FORMAT else "n": b"long", "d\u00efsk": b"named"}
    data = pack(tmp_path / "a.ova", files, layout).read_bytes()
    found = members_of(tmp_path / "a.ova")
    assert {name: data[each.offset : each.offset + each.size] for name, each in found.items()} == files
    assert all(each.window.size % 512 == 0 <= each.window.size - each.size < 512 for each in found.values())


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_member_of_more_than_8_gib(tmp_path: Path, layout: Literal[1, 2]) -> None:
    member, path = tarfile.TarInfo("disk.img"), tmp_path / "a.ova"
    member.size = 9 << 30
    path.write_bytes(member.tobuf(layout))
    at = path.stat().st_size
    os.truncate(path, at + member.size + 1024)
    assert members_of(path) == {"disk.img": Member("disk.img", at, 9 << 30)}


def test_leading_dot_and_directories_mean_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.ova", "w") as archive:
        place = tarfile.TarInfo("./")
        place.type = tarfile.DIRTYPE
        archive.addfile(place)
        archive.addfile(tarfile.TarInfo("./vm.ovf"))
    assert members_of(tmp_path / "a.ova").keys() == {"vm.ovf"}


KINDS = [
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.GNUTYPE_SPARSE,
    b"M",
    b"Z",
]


@pytest.mark.parametrize("kind", KINDS)
def test_anything_but_a_plain_file_is_unsafe(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("disk.vmdk")
    member.type, member.linkname = kind, "/etc/shadow"
    (tmp_path / "a.ova").write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    assert refusal(tmp_path / "a.ova") is ErrorCode.IMAGE_UNSAFE


@pytest.mark.parametrize("name", ["/etc/shadow", "../disk", "a/../../b", ".."])
def test_names_that_lead_elsewhere_are_unsafe(tmp_path: Path, name: str) -> None:
    assert refusal(pack(tmp_path / "a.ova", {name: b"x"})) is ErrorCode.IMAGE_UNSAFE


@pytest.mark.parametrize("key", ["GNU.sparse.map", "GNU.sparse.major"])
def test_sparse_members_of_pax_are_unsafe(tmp_path: Path, key: str) -> None:
    assert refusal(with_pax(tmp_path, {key: "1"})) is ErrorCode.IMAGE_UNSAFE


@pytest.mark.parametrize("size", ["-1", "1e3", "9" * 30, "99999999999", "\u0663"])
def test_sizes_of_pax_are_not_believed(tmp_path: Path, size: str) -> None:
    assert refusal(with_pax(tmp_path, {"size": size})) is ErrorCode.IMAGE_CORRUPT


def with_pax(place: Path, headers: dict[str, str]) -> Path:
    with tarfile.open(place / "a.ova", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("disk.vmdk")
        member.pax_headers = headers
        archive.addfile(member)
    return place / "a.ova"


def test_name_that_occurs_twice_is_unsafe(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.ova", "w") as archive:
        for content in (b"good", b"evil"):
            member = tarfile.TarInfo("disk.vmdk")
            member.size = 4
            archive.addfile(member, io.BytesIO(content))
    assert refusal(tmp_path / "a.ova") is ErrorCode.IMAGE_UNSAFE


def set_size(data: bytearray, field: bytes) -> None:
    data[124:136] = field
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])


def flip(data: bytearray) -> None:
    data[0] ^= 1


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda data: set_size(data, b"77777777777\0"),
        lambda data: set_size(data, b"\x80" + b"\xff" * 11),
        lambda data: set_size(data, b"\xff" * 12),
        lambda data: set_size(data, b"-0000000001\0"),
        lambda data: data.__delitem__(slice(1000, None)),
    ],
)
def test_damaged_archive_is_corrupt(tmp_path: Path, damage: Callable[[bytearray], None]) -> None:
    data = bytearray(pack(tmp_path / "a.ova", FILES).read_bytes())
    damage(data)
    (tmp_path / "a.ova").write_bytes(data)
    assert refusal(tmp_path / "a.ova") is ErrorCode.IMAGE_CORRUPT


def test_entries_beyond_reason(tmp_path: Path) -> None:
    block = tarfile.TarInfo("d")
    block.type = tarfile.DIRTYPE
    (tmp_path / "a.ova").write_bytes(block.tobuf(tarfile.USTAR_FORMAT) * (MAX_MEMBERS + 1))
    assert refusal(tmp_path / "a.ova") is ErrorCode.IMAGE_UNSAFE


def test_extended_header_beyond_reason(tmp_path: Path) -> None:
    block = tarfile.TarInfo("x")
    block.type, block.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "a.ova").write_bytes(block.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(tmp_path / "a.ova", 2 << 30)
    assert refusal(tmp_path / "a.ova") is ErrorCode.IMAGE_UNSAFE
