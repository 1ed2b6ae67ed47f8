import contextlib
import os
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.packages import descriptor
from workers.formats import foreign_format, read_header
from workers.formats.header import ImageBytes, Refused
from workers.formats.ovf import read_disks, read_manifest
from workers.formats.tar import read_members

MARKS = [
    b"QFI\xfb\0\0\0\3",
    b"KDMV\1\0\0\0",
    b"COWD",
    b"# Disk DescriptorFile\nRW ",
    b"conectix",
    b"vhdxfile",
]
VDI = bytes(64) + b"\x7f\x10\xda\xbe"


def written(content: bytes) -> int:
    descriptor = os.memfd_create("image")
    os.write(descriptor, content)
    return descriptor


def read_all(content: bytes) -> None:
    descriptor = written(content)
    try:
        image = ImageBytes(descriptor)
        read_header(image)
        foreign_format(image)
        with contextlib.suppress(Refused):
            read_members(image)
    finally:
        os.close(descriptor)


@given(
    st.sampled_from([b"", *MARKS, VDI]),
    st.binary(max_size=4096),
    st.sampled_from([b"", b"conectix" + bytes(504)]),
)
def test_no_content_breaks_the_readers(mark: bytes, content: bytes, end: bytes) -> None:
    read_all(mark + content + end)


@given(st.integers(0, 511), st.binary(min_size=1, max_size=16), st.sampled_from([b"0", b"x", b"g", b"L"]))
def test_no_header_of_an_archive_breaks_the_reader(at: int, value: bytes, kind: bytes) -> None:
    member = tarfile.TarInfo("disk.vmdk")
    member.size = 600
    block = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = kind
    block[at : at + len(value)] = value
    block = block[:512].ljust(512, b"\0")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    read_all(bytes(block) + value.ljust(1024, value[:1]) + bytes(1024))


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_descriptor_or_manifest_breaks_the_readers(content: bytes, at: int) -> None:
    document = descriptor("a.vmdk", "b.vmdk")
    read_manifest(b"SHA256(" + content)
    with contextlib.suppress(Refused):
        read_disks(document[:at] + content + document[at:])


@pytest.mark.parametrize("mark", MARKS)
def test_readers_take_no_more_memory_than_an_image_can_need(mark: bytes) -> None:
    """A sparse file costs its sender nothing, however large the tables are that it claims."""
    descriptor = written(mark + b"\xff" * 1016)
    try:
        os.truncate(descriptor, 4 << 40)
        assert read_header(ImageBytes(descriptor)) is not None
    finally:
        os.close(descriptor)
