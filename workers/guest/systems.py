"""Finding the operating system on a guest's disk, and mounting it as it mounts itself."""

from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest import fstab, release
from workers.guest.disks import Disks, Volume
from workers.guest.release import Release
from workers.guest.rescue import Rescue

_SUBVOLUMES: Final = ("@", "@rootfs", "root", "@root")
"""What installers call the subvolume that holds the root: Ubuntu and openSUSE, Debian, Fedora."""

_NEVER_MOUNTED: Final = frozenset({"/", "none", "swap", "/proc", "/sys", "/dev", "/run"})


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that holds an operating system's root, in a subvolume of it if one is named."""

    volume: Volume
    release: Release
    subvolume: str | None = None

    @property
    def options(self) -> tuple[str, ...]:
        return ("-o", f"subvol={self.subvolume}") if self.subvolume else ()


class System(msgspec.Struct, frozen=True, kw_only=True):
    """A mounted operating system. `problems` say what of it could not be mounted, and why."""

    root: Root
    entries: tuple[fstab.Entry, ...] = ()
    mounted: dict[str, Volume] = {}
    problems: tuple[str, ...] = ()


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What looking for systems came to; `damaged` are filesystems that do not mount, with the words."""

    roots: tuple[Root, ...] = ()
    windows: tuple[dict[str, str], ...] = ()
    damaged: dict[str, str] = {}


async def search(rescue: Rescue, disks: Disks) -> Search:
    """Look into every filesystem. Nothing is mounted afterwards."""
    roots: list[Root] = []
    damaged: dict[str, str] = {}
    for volume in disks.volumes:
        if volume.mountable:
            roots += await _roots_on(rescue, volume, damaged)
    windows = []
    if not roots and any(each.filesystem == "ntfs" for each in disks.volumes):
        windows = await rescue.windows()
    return Search(roots=tuple(roots), windows=tuple(windows), damaged=damaged)


def the_root(found: Search, disks: Disks, wanted: str | None) -> Root:
    """The one Linux system to work on.

    Raises NO_OS_FOUND, MULTIPLE_OS, GUEST_ENCRYPTED, or GUEST_UNSUPPORTED for one that is no Linux.
    """
    roots = [each for each in found.roots if wanted is None or each.volume.device == wanted]
    if len(roots) == 1:
        return roots[0]
    if roots:
        names = ", ".join(f"{each.release.name} on {each.volume.device}" for each in roots)
        message = f"the disk holds {len(roots)} operating systems: {names}; parameters.root chooses one"
        raise OperationFailed(ErrorCode.MULTIPLE_OS, message)
    raise _nothing_found(found, disks, wanted)


def _nothing_found(found: Search, disks: Disks, wanted: str | None) -> OperationFailed:
    if found.roots and wanted:
        known = ", ".join(each.volume.device for each in found.roots)
        return OperationFailed(
            ErrorCode.NO_OS_FOUND, f"{wanted} holds no operating system; found on: {known}"
        )
    if disks.encrypted:
        names = ", ".join(f"{each.device} ({each.filesystem})" for each in disks.encrypted)
        return OperationFailed(ErrorCode.GUEST_ENCRYPTED, f"no readable root: encrypted are {names}")
    if found.windows:
        name = found.windows[0]["name"]
        return OperationFailed(
            ErrorCode.GUEST_UNSUPPORTED, f"the guest is {name}, and this is for Linux guests"
        )
    damaged = "; ".join(f"{device}: {words}" for device, words in found.damaged.items())
    words = f"; filesystems that do not mount: {damaged}" if damaged else ""
    return OperationFailed(ErrorCode.NO_OS_FOUND, f"no operating system was found on the disk{words}")


async def mount(rescue: Rescue, disks: Disks, root: Root) -> System:
    """Mount the root, and what its fstab adds to it, where the guest itself does."""
    await rescue.run("mount", *root.options, root.volume.device, rescue.sysroot)
    entries = tuple(fstab.parse(await rescue.read_shown("/etc/fstab") or ""))
    mounted = {"/": root.volume}
    problems: list[str] = []
    for entry in sorted(_mountable(entries), key=lambda each: each.mount_point):
        volume = fstab.resolve(entry.spec, disks.volumes)
        if volume is None:
            problems.append(f"fstab names {entry.spec} for {entry.mount_point}, which is not on this disk")
        elif words := await _mount_entry(rescue, entry, volume):
            problems.append(f"{volume.device} does not mount on {entry.mount_point}: {words}")
        else:
            mounted[entry.mount_point] = volume
    return System(root=root, entries=entries, mounted=mounted, problems=tuple(problems))


def _mountable(entries: tuple[fstab.Entry, ...]) -> list[fstab.Entry]:
    return [
        each
        for each in entries
        if each.names_device
        and each.mount_point.startswith("/")
        and ".." not in each.mount_point
        and each.mount_point not in _NEVER_MOUNTED
        and "noauto" not in each.options
    ]


async def _mount_entry(rescue: Rescue, entry: fstab.Entry, volume: Volume) -> str | None:
    """Mount one entry; what went wrong, if anything did."""
    if (await rescue.kind(entry.mount_point)).kind != "directory":
        return "the guest has no such directory"
    place = rescue.sysroot + entry.mount_point
    subvolume = [each for each in entry.options if each.startswith("subvol")]
    options = ("-o", ",".join(subvolume)) if subvolume else ()
    said = await rescue.run("mount", *options, volume.device, place, accept=None)
    return said.words if said.status else None


async def _roots_on(rescue: Rescue, volume: Volume, damaged: dict[str, str]) -> list[Root]:
    for subvolume in await _candidates(rescue, volume):
        options = ("-o", f"subvol={subvolume}") if subvolume else ()
        said = await rescue.run("mount", *options, volume.device, rescue.sysroot, accept=None)
        if said.status:
            damaged[volume.device] = said.words
            continue
        try:
            found = await _release(rescue)
        finally:
            await rescue.run("umount", rescue.sysroot)
        if found is not None:
            return [Root(volume=volume, release=found, subvolume=subvolume)]
    return []


async def _candidates(rescue: Rescue, volume: Volume) -> list[str | None]:
    """The subvolumes of a btrfs that usually hold a root, then the filesystem as it mounts by itself."""
    if volume.filesystem != "btrfs":
        return [None]
    said = await rescue.run("mount", "-o", "subvolid=5", volume.device, rescue.sysroot, accept=None)
    if said.status:
        return [None]
    listed = await rescue.run("btrfs", "subvolume", "list", rescue.sysroot, accept=None)
    await rescue.run("umount", rescue.sysroot)
    names = {line.rpartition(" path ")[2] for line in listed.out.splitlines()}
    return [*(each for each in _SUBVOLUMES if each in names), None]


async def _release(rescue: Rescue) -> Release | None:
    for path in release.PATHS:
        text = await rescue.read_shown(path)
        if text is not None and (await rescue.kind("/etc")).kind == "directory":
            return release.parse(text)
    return None
