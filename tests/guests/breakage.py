"""Breaks a guest on purpose, in the ways that migrations do. Every function changes a raw disk in place."""

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.guests.build import GUESTS, attached, mounted, part, run

_START: Final = re.compile(r"start=\s*(\d+)")
_SECTOR: Final = 512
FIRST_EXTENT: Final = 1 << 20
"""Where LVM begins the first volume of a new physical volume."""
_LABEL_AND_HEADER: Final = 9 * _SECTOR
_NO_VIRTIO: Final = "MODULES=list\nBUSYBOX=auto\nCOMPRESS=gzip\n"
"""An initramfs with the modules of a list only, as a guest has that was made for one hypervisor."""


def partition_start(disk: Path, number: int) -> int:
    """The byte at which a partition begins."""
    said = subprocess.run(["sfdisk", "-d", disk], check=True, capture_output=True, text=True, timeout=60)
    line = next(each for each in said.stdout.splitlines() if each.startswith(f"{disk}{number} "))
    match = _START.search(line)
    assert match is not None
    return int(match[1]) * _SECTOR


def _zero(disk: Path, offset: int, length: int) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))


def superblock(disk: Path, name: str) -> None:
    """The root filesystem's primary superblock is gone."""
    layout = GUESTS[name]
    at, length = {"ext4": (1024, 1024), "xfs": (0, 512), "btrfs": (64 << 10, 4096)}[layout.filesystem]
    volume_at = FIRST_EXTENT if layout.in_volume_group else 0
    _zero(disk, partition_start(disk, layout.root_at) + volume_at + at, length)


def volume_label(disk: Path, name: str) -> None:
    """The physical volume's label and the header of its metadata are gone."""
    _zero(disk, partition_start(disk, GUESTS[name].root_at), _LABEL_AND_HEADER)


def boot_code(disk: Path, name: str) -> None:
    """Nothing is left of the boot loader outside of the filesystems: a disk that was copied by partitions."""
    _zero(disk, 0, 440)
    _zero(disk, partition_start(disk, 1), 1 << 20)


def fallback_loader(disk: Path, name: str) -> None:
    """The EFI system partition has no loader where firmware looks that does not know this system."""
    offset = partition_start(disk, GUESTS[name].efi_at or 1)
    subprocess.run(["mdel", "-i", f"{disk}@@{offset}", "::/EFI/BOOT/BOOTX64.EFI"], check=True, timeout=60)


def virtio_drivers(disk: Path, name: str) -> None:
    """The initramfs holds no virtio driver, and is not going to."""
    with inside(disk, name) as tree:
        (tree / "etc/initramfs-tools/initramfs.conf").write_text(_NO_VIRTIO)
        (tree / "etc/initramfs-tools/modules").write_text(f"{GUESTS[name].filesystem}\n")
        run("update-initramfs", "-u", "-k", "all", into=tree)


def device_names(disk: Path, name: str) -> None:
    """The guest names its root and a data disk as the old hypervisor did."""
    number = GUESTS[name].root_at
    with inside(disk, name) as tree:
        table = tree / "etc/fstab"
        lines = [re.sub(r"^\S+ / ", f"/dev/sda{number} / ", each) for each in table.read_text().splitlines()]
        table.write_text("\n".join([*lines, "/dev/sdb1 /srv ext4 defaults 0 2"]) + "\n")
        config = tree / "boot/grub/grub.cfg"
        config.write_text(re.sub(r"root=\S+", f"root=/dev/sda{number}", config.read_text()))


def selinux_labels(disk: Path, name: str) -> None:
    """SELinux is switched on, and no file has a label."""
    with inside(disk, name) as tree:
        (tree / "etc/selinux/config").write_text("SELINUX=permissive\nSELINUXTYPE=default\n")


def made_for_another_host(disk: Path, name: str) -> None:
    """Everything at once that a guest brings from another hypervisor."""
    device_names(disk, name)
    virtio_drivers(disk, name)


@contextlib.contextmanager
def _first_volume(physical: Path) -> Iterator[Path]:
    device = run("losetup", "--find", "--show", "--offset", FIRST_EXTENT, physical).strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def inside(disk: Path, name: str) -> Iterator[Path]:
    """The guest's tree, mounted on this host, which need not know volume groups for it."""
    layout = GUESTS[name]
    options = (f"subvol={layout.subvolume}",) if layout.subvolume else ()
    with attached(disk) as device, contextlib.ExitStack() as stack:
        root = part(device, layout.root_at)
        if layout.in_volume_group:
            root = stack.enter_context(_first_volume(root))
        tree = stack.enter_context(mounted(root, disk.with_suffix(".tree"), *options))
        if layout.boot_at:
            stack.enter_context(mounted(part(device, layout.boot_at), tree / "boot"))
        for each in ("dev", "proc", "sys"):
            run("mount", "--rbind", f"/{each}", tree / each)
            run("mount", "--make-rslave", tree / each)
        yield tree


BREAKAGES: Final[Mapping[str, Callable[[Path, str], None]]] = {
    "superblock": superblock,
    "volume-label": volume_label,
    "boot-code": boot_code,
    "fallback-loader": fallback_loader,
    "no-virtio": virtio_drivers,
    "device-names": device_names,
    "selinux": selinux_labels,
    "everything": made_for_another_host,
}
