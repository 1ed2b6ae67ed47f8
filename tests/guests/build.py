"""Builds real guests from Debian packages: one root tree, then a bootable disk of each kind.

Needs root, loop devices and debootstrap. What was built is kept in a cache directory whose name is a
hash of this recipe; a change here builds anew.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

SUITE: Final = "bookworm"
BUSY_SECONDS: Final = 20.0
MIB: Final = 1 << 20
DISK_BYTES: Final = 2048 * MIB
BIOS_BOOT: Final = "21686148-6449-6E6F-744E-656564454649"
EFI_SYSTEM: Final = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LVM_TYPE: Final = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
PACKAGES: Final = (
    "systemd-sysv", "udev", "dbus", "kmod", "linux-image-cloud-amd64", "initramfs-tools", "lvm2",
    "grub2-common", "grub-pc-bin", "grub-efi-amd64-bin", "e2fsprogs", "xfsprogs", "btrfs-progs", "dosfstools",
    "selinux-policy-default", "iproute2", "ifupdown",
)  # fmt: skip
MASKED: Final = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
    "dpkg-db-backup.timer", "systemd-timesyncd.service", "systemd-networkd-wait-online.service",
    "lvm2-monitor.service", "networking.service",
)  # fmt: skip
UNUSED: Final = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")
DEFAULT_GRUB: Final = (
    "GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\nGRUB_DISABLE_OS_PROBER=true\n"
    'GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0 rootdelay=5"\nGRUB_TERMINAL="serial console"\n'
)
VG_NAME: Final = "guest"
UNACCELERATED: Final = {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}


class BuildFailed(Exception):
    """A tool that builds a guest failed; its own words are the message."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How one guest's disk is divided, and what is on the partitions.

    `partitions` are pairs of size in MiB (0 for the rest of the disk) and type.
    """

    partitions: tuple[tuple[int, str], ...]
    root_at: int
    filesystem: str
    make: tuple[str, ...]
    efi_at: int | None = None
    boot_at: int | None = None
    subvolume: str | None = None
    in_volume_group: bool = False


GUESTS: Final[Mapping[str, Layout]] = {
    "lvm": Layout(
        partitions=((1, BIOS_BOOT), (192, "linux"), (0, LVM_TYPE)),
        root_at=3, boot_at=2, filesystem="ext4", make=("mkfs.ext4", "-q", "-F"), in_volume_group=True,
    ),
    "xfs": Layout(
        partitions=((1, BIOS_BOOT), (0, "linux")),
        root_at=2, filesystem="xfs", make=("mkfs.xfs", "-q", "-f"),
    ),
    "btrfs": Layout(
        partitions=((1, BIOS_BOOT), (0, "linux")),
        root_at=2, filesystem="btrfs", make=("mkfs.btrfs", "-q", "-f"), subvolume="@rootfs",
    ),
    "uefi": Layout(
        partitions=((64, EFI_SYSTEM), (0, "linux")),
        root_at=2, efi_at=1, filesystem="ext4", make=("mkfs.ext4", "-q", "-F"),
    ),
}  # fmt: skip


def cache_directory() -> Path:
    """Where guests are kept; `H2KBUS_GUESTS` names another place."""
    base = os.environ.get("H2KBUS_GUESTS")
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(base) if base else home / "h2kbus-guests") / recipe


def guest(name: str) -> Path:
    """The raw disk of one guest, built if the cache has none. Raises BuildFailed."""
    disk = cache_directory() / f"{name}.raw"
    if not disk.exists():
        if os.geteuid() != 0:
            raise BuildFailed("building guests needs root: loop devices are attached and trees made")
        disk.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=disk.parent, prefix=".building-") as place:
            made = Path(place) / disk.name
            build(GUESTS[name], _base_tree(), made, Path(place))
            made.rename(disk)
    return disk


def run(*argv: object, into: Path | None = None) -> str:
    """Run a tool to its end. `into` is a tree to change root to. Raises BuildFailed."""
    prefix = ["chroot", str(into)] if into else []
    done = subprocess.run(
        [*prefix, *map(str, argv)],
        check=False, text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=900,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
    )  # fmt: skip
    if done.returncode:
        raise BuildFailed(f"{argv}: {done.stderr[-2000:]}{done.stdout[-2000:]}")
    return done.stdout


def _base_tree() -> Path:
    """The root tree that all guests start from."""
    tree = cache_directory() / "base"
    if not tree.exists():
        with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".base-") as place:
            made = Path(place) / "base"
            mirror = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
            include = f"--include={','.join(PACKAGES)}"
            run("debootstrap", "--variant=minbase", include, SUITE, made, mirror.split()[0])
            _configure(made)
            made.rename(tree)
    return tree


def _configure(tree: Path) -> None:
    for each in UNUSED:
        shutil.rmtree(tree / each, ignore_errors=True)
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "etc/default/grub").write_text(DEFAULT_GRUB)
    run("passwd", "-d", "root", into=tree)
    for unit in MASKED:
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")


def build(layout: Layout, base: Path, disk: Path, place: Path) -> None:
    """Make one bootable disk at `disk`, working in `place`."""
    disk.touch()
    os.truncate(disk, DISK_BYTES)
    _partition(layout, disk)
    with attached(disk) as device:
        root = _root_device(layout, device, place) if not layout.in_volume_group else None
        if root is not None:
            _fill(layout, base, device, root, place)
            return
    _build_in_volume_group(layout, base, disk, place)


def _partition(layout: Layout, disk: Path) -> None:
    lines = ["label: gpt"]
    lines += [f"{f'size={size}MiB,' if size else ''}type={kind}" for size, kind in layout.partitions]
    subprocess.run(["sfdisk", "-q", disk], input="\n".join(lines) + "\n", text=True, check=True, timeout=60)


@contextlib.contextmanager
def attached(disk: Path) -> Iterator[Path]:
    """The disk as a loop device whose partitions have device nodes."""
    device = Path(run("losetup", "--find", "--show", disk).strip())
    nodes: list[Path] = []
    try:
        run("partx", "--add", device)
        for part in sorted(Path("/sys/block", device.name).glob(f"{device.name}p*")):
            node = Path("/dev", part.name)
            if not node.exists():
                major, minor = map(int, (part / "dev").read_text().split(":"))
                os.mknod(node, 0o600 | 0o060000, os.makedev(major, minor))
                nodes.append(node)
        yield device
    finally:
        _let_go(device)
        run("losetup", "--detach", device)
        for node in nodes:
            node.unlink()


def _let_go(device: Path) -> None:
    """Remove the partitions. A sandbox that is being made has all mounts of the host for a moment."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            run("partx", "--delete", device)
        except BuildFailed:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def part(device: Path, number: int) -> Path:
    return device.with_name(f"{device.name}p{number}")


def _root_device(layout: Layout, device: Path, place: Path) -> Path:
    root = part(device, layout.root_at)
    run(*layout.make, root)
    if layout.subvolume:
        with mounted(root, place / "top") as top:
            run("btrfs", "subvolume", "create", top / layout.subvolume)
    return root


@contextlib.contextmanager
def mounted(device: Path, at: Path, *options: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True, parents=True)
    run("mount", *(("-o", ",".join(options)) if options else ()), device, at)
    try:
        yield at
    finally:
        run("umount", "--recursive", at)


def _fill(layout: Layout, base: Path, device: Path, root: Path, place: Path) -> None:
    options = (f"subvol={layout.subvolume}",) if layout.subvolume else ()
    with mounted(root, place / "root", *options) as tree, contextlib.ExitStack() as stack:
        run("cp", "--archive", f"{base}/.", tree)
        if layout.boot_at:
            boot = part(device, layout.boot_at)
            run("mkfs.ext4", "-q", "-F", boot)
            (tree / "boot").rename(tree / "boot.full")
            stack.enter_context(mounted(boot, tree / "boot"))
            run("cp", "--archive", f"{tree}/boot.full/.", tree / "boot")
            shutil.rmtree(tree / "boot.full")
        if layout.efi_at:
            run("mkfs.vfat", "-F", "32", part(device, layout.efi_at))
            (tree / "boot/efi").mkdir()
        _write_fstab(layout, device, root, tree)
        _make_bootable(layout, device, root, tree)


def _write_fstab(layout: Layout, device: Path, root: Path, tree: Path) -> None:
    extra = f",subvol={layout.subvolume}" if layout.subvolume else ""
    lines = [f"UUID={_uuid(root)} / {layout.filesystem} defaults{extra} 0 1"]
    if layout.in_volume_group:
        lines = [f"/dev/{VG_NAME}/root / {layout.filesystem} defaults 0 1"]
    if layout.boot_at:
        lines.append(f"UUID={_uuid(part(device, layout.boot_at))} /boot ext4 defaults 0 2")
    if layout.efi_at:
        lines.append(f"UUID={_uuid(part(device, layout.efi_at))} /boot/efi vfat umask=0077 0 1")
    (tree / "etc/fstab").write_text("\n".join(lines) + "\n")


def _uuid(device: Path) -> str:
    return run("blkid", "-p", "-s", "UUID", "-o", "value", device).strip()


def _make_bootable(layout: Layout, device: Path, root: Path, tree: Path) -> None:
    for name in ("dev", "proc", "sys"):
        run("mount", "--rbind", f"/{name}", tree / name)
        run("mount", "--make-rslave", tree / name)
    run("update-initramfs", "-u", "-k", "all", into=tree)
    if layout.efi_at:
        _install_efi(layout, part(device, layout.efi_at), tree)
    else:
        run("grub-install", "--target=i386-pc", device, into=tree)
    run("update-grub", into=tree)
    # Nothing here makes /dev/disk/by-uuid for the loop device, so that GRUB falls back to its name.
    name = f"/dev/mapper/{VG_NAME}-root" if layout.in_volume_group else f"UUID={_uuid(root)}"
    config = tree / "boot/grub/grub.cfg"
    config.write_text(config.read_text().replace(f"root={root}", f"root={name}"))


def _install_efi(layout: Layout, efi: Path, tree: Path) -> None:
    """What grub-install does, written by mtools: this host's kernel may not know vfat."""
    shutil.copytree(tree / "usr/lib/grub/x86_64-efi", tree / "boot/grub/x86_64-efi")
    modules = ("part_gpt", "ext2", "normal", "linux", "search", "serial", "terminal", "configfile", "echo")
    prefix = f"(,gpt{layout.root_at})/boot/grub"
    run("grub-mkimage", "-O", "x86_64-efi", "-p", prefix, "-o", "/boot/core.efi", *modules, into=tree)
    run("mmd", "-i", efi, "::/EFI", "::/EFI/BOOT")
    run("mcopy", "-i", efi, tree / "boot/core.efi", "::/EFI/BOOT/BOOTX64.EFI")
    (tree / "boot/core.efi").unlink()


def _build_in_volume_group(layout: Layout, base: Path, disk: Path, place: Path) -> None:
    """This host may have no device mapper: the root is made elsewhere and laid where its volume will be.

    It is made on a partition, since grub-mkconfig finds no kernels on a bare loop device.
    """
    image = place / "root.img"
    before = sum(size for size, _ in layout.partitions)
    size = (DISK_BYTES // MIB - before - 72) // 4 * 4
    image.touch()
    os.truncate(image, (size + 2) * MIB)
    _partition(msgspec.structs.replace(layout, partitions=((size, "linux"),)), image)
    with attached(disk) as device, attached(image) as made:
        root = part(made, 1)
        run(*layout.make, root)
        _fill(layout, base, device, root, place)
    start = _make_volume(disk, layout.root_at, size)
    blocks = ("bs=1M", "skip=1", f"count={size}", "conv=notrunc,sparse", "oflag=seek_bytes", f"seek={start}")
    run("dd", f"if={image}", f"of={disk}", *blocks)
    image.unlink()


def _make_volume(disk: Path, partition: int, size: int) -> int:
    """Make the volume group on its partition; returns the byte of the disk at which the volume begins."""
    script = (
        f"run\npvcreate /dev/sda{partition}\nvgcreate {VG_NAME} /dev/sda{partition}\n"
        f"lvcreate root {VG_NAME} {size}\n"
        f"lvcreate swap {VG_NAME} 32\nmkswap /dev/{VG_NAME}/swap\n"
        f"part-get-gpt-guid /dev/sda {partition}\ndebug sh 'lvm pvs --noheadings --units b -o pe_start'\n"
        "part-list /dev/sda\n"
    )
    done = subprocess.run(
        ["guestfish", "--format=raw", "-a", disk], input=script, text=True, capture_output=True, check=False,
        timeout=300, env={**os.environ, **UNACCELERATED},
    )  # fmt: skip
    if done.returncode:
        raise BuildFailed(done.stderr)
    first = int(next(each for each in done.stdout.split() if each.endswith("B") and each[:-1].isdigit())[:-1])
    table = done.stdout.partition(f"part_num: {partition}")[2]
    return int(table.partition("part_start:")[2].split()[0]) + first


def prepare(say: Callable[[str], None] = print) -> None:
    """Build every guest that the cache lacks."""
    for name in GUESTS:
        say(f"{name}: {guest(name)}")


if __name__ == "__main__":
    try:
        prepare()
    except BuildFailed as failure:
        sys.exit(f"a guest cannot be built: {failure}")
