"""GRUB as it lies on a disk: what its sectors and its configuration say."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.guest import grub

CONFIG = """
menuentry 'Debian GNU/Linux' --class debian {
    insmod part_gpt
    search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt2 ad99a3b8-ea3d-48c3-80e6-8197be7209b7
    linux   /vmlinuz-6.1.0-13-amd64 root=UUID=9c70 ro quiet console=ttyS0
    initrd  /initrd.img-6.1.0-13-amd64
}
submenu 'Advanced options' {
    linux16 /boot/vmlinuz-5.10.0 root=/dev/sda2 ro
}
"""


def sector(code: bytes, core: int = 0) -> bytes:
    made = bytearray(512)
    made[: len(code)] = code
    struct.pack_into("<Q", made, 0x5C, core)
    made[510:] = b"\x55\xaa"
    return bytes(made)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (bytes(512), grub.BootSector(None)),
        (sector(b"\xeb\x63" + bytes(300) + b"GRUB ", 34), grub.BootSector("grub", 34 * 512)),
        (sector(b"\xfa\x33\xc0 another loader"), grub.BootSector("other")),
        (sector(b"\xeb\x63GRUB")[:510] + b"\0\0", grub.BootSector(None)),
    ],
)
def test_first_sector_tells_its_loader(first: bytes, expected: grub.BootSector) -> None:
    assert grub.read_sector(first) == expected


def test_core_image_may_differ_only_where_it_is_settled() -> None:
    core = bytes(range(256)) * 200
    settled = b"\xff" * 2048 + core[2048:]
    assert grub.same_core(settled, core)
    assert not grub.same_core(core[:4096] + b"!" + core[4097:], core)


def test_kernels_and_their_roots_are_read() -> None:
    found = grub.entries(CONFIG)
    assert [(each.kernel, each.root) for each in found] == [
        ("vmlinuz-6.1.0-13-amd64", "UUID=9c70"),
        ("vmlinuz-5.10.0", "/dev/sda2"),
    ]


def test_filesystems_that_are_looked_for_are_read() -> None:
    assert grub.searched(CONFIG) == {"ad99a3b8-ea3d-48c3-80e6-8197be7209b7"}


def test_loader_entry_is_read() -> None:
    entry = grub.loader_entry("title Fedora\nlinux /vmlinuz-6.5\noptions root=UUID=7 ro\n")
    assert entry is not None
    assert (entry.kernel, entry.root) == ("vmlinuz-6.5", "UUID=7")
    assert grub.loader_entry("title only\n") is None


def test_only_the_wrong_roots_are_replaced() -> None:
    after = grub.with_root(CONFIG, {"/dev/sda2"}, "UUID=9c70")
    assert [each.root for each in grub.entries(after)] == ["UUID=9c70", "UUID=9c70"]
    assert after.replace("5.10.0 root=UUID=9c70", "5.10.0 root=/dev/sda2") == CONFIG


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    grub.entries(text)
    grub.searched(text)
    grub.loader_entry(text)
    list(grub.root_arguments(text))


@given(st.binary(max_size=600))
def test_any_sector_is_read(data: bytes) -> None:
    grub.read_sector(data.ljust(512, b"\0"))
