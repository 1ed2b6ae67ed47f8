"""Checks every filesystem of a guest, and repairs those that are damaged, with their own tools.

A filesystem that checks clean is left alone. One whose superblock is lost is found by its copies. What
was repaired is checked again and mounted before it counts.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.disks import LINUX_TYPES, LVM_TYPES, Volume
from workers.guest.rescue import Rescue, RescueOutput
from workers.repairs.case import Case

_EXT_COPIES: Final = ((4096, 32768), (1024, 8193), (2048, 16384))
"""Block size and the block of the first copy of an ext superblock (mke2fs(8), superblock backups)."""

_EXT_MAGIC: Final = b"\x53\xef"
_EXT_MAGIC_AT: Final = 56
_BTRFS_COPY_AT: Final = (64 << 20) + 0x40
_BTRFS_MAGIC: Final = b"_BHRfS_M"
_E2FSCK_MENDED: Final = frozenset({0, 1, 2})
_XFS_DIRTY_LOG: Final = 2
_FSCK_FAT_CHANGED: Final = frozenset({0, 1})
_LEFT_ALONE: Final = frozenset({"ntfs"})
_ROOT_LOST: Final = re.compile(
    r"Root inode (?:is not a directory|not allocated)|reinitializing root directory"
)
"""The words of e2fsck and xfs_repair when they make a new, empty root: everything else is lost then."""

Clean = Callable[[Case, str], Awaitable[RescueOutput]]


async def fsck(case: Case) -> None:
    """Check and repair. Raises FS_CORRUPTION_UNRECOVERABLE when one of them stays damaged."""
    wanted = getattr(case.parameters, "devices", ())
    _require_known(case, wanted)
    failures = []
    seen = 0
    for volume in case.disks.volumes:
        if wanted and volume.device not in wanted:
            continue
        kind = volume.filesystem or await _lost_filesystem(case, volume)
        if kind in _LEFT_ALONE:
            seen += 1
            case.notes.add(f"fsck {volume.device}", "skipped", f"{kind} is checked by Windows itself")
        if kind is None or kind not in _TOOLS:
            continue
        seen += 1
        try:
            await _mend(case, volume, kind)
        except OperationFailed as failure:
            case.notes.add(f"fsck {volume.device}", "failed", str(failure))
            failures.append(failure)
    if failures:
        raise failures[0]
    if not seen and case.disks.encrypted:
        names = ", ".join(each.device for each in case.disks.encrypted)
        raise OperationFailed(ErrorCode.GUEST_ENCRYPTED, f"nothing to be checked: encrypted is {names}")
    if not seen:
        raise OperationFailed(ErrorCode.NO_OS_FOUND, "no filesystem was found on the disk")


def _require_known(case: Case, wanted: tuple[str, ...]) -> None:
    known = [each.device for each in case.disks.volumes]
    for device in wanted:
        if device not in known:
            message = f"there is no {device}; the disk has {', '.join(known) or 'no partitions'}"
            raise OperationFailed(ErrorCode.INVALID_SPEC, message)


async def _mend(case: Case, volume: Volume, kind: str) -> None:
    clean, repair = _TOOLS[kind]
    lost = volume.filesystem is None
    if not lost and (await clean(case, volume.device)).status == 0:
        return case.notes.add(f"fsck {volume.device}", "not needed", f"{kind} is clean")
    how = await repair(case, volume.device)
    found = await clean(case, volume.device)
    if found.status:
        raise _beyond_repair(volume.device, kind, found)
    if kind in _MOUNTED:
        await _prove_mount(case.rescue, volume.device, kind)
    words = "its superblock was lost; " if lost else ""
    return case.notes.add(f"fsck {volume.device}", "applied", f"{kind}: {words}{how}; it is clean and mounts")


async def _prove_mount(rescue: Rescue, device: str, kind: str) -> None:
    said = await rescue.run("mount", "-o", "ro", device, rescue.sysroot, accept=None)
    if said.status:
        raise _beyond_repair(device, kind, said)
    await rescue.run("umount", rescue.sysroot)


def _require_root(device: str, kind: str, said: RescueOutput) -> None:
    """An empty filesystem in the place of a guest's is no repair, whatever the tool's status says."""
    lost = _ROOT_LOST.search(said.text)
    if lost is not None:
        message = f"the {kind} on {device} cannot be repaired, its root directory is lost: {lost[0]}"
        raise OperationFailed(
            ErrorCode.FS_CORRUPTION_UNRECOVERABLE, message, device=device, tool_output=said.text[-2000:]
        )


def _beyond_repair(device: str, kind: str, said: RescueOutput) -> OperationFailed:
    message = f"the {kind} on {device} cannot be repaired: {said.words}"
    return OperationFailed(
        ErrorCode.FS_CORRUPTION_UNRECOVERABLE, message, device=device, tool_output=said.text[-2000:]
    )


async def _lost_filesystem(case: Case, volume: Volume) -> str | None:
    """Which filesystem a volume without any marks held, by the copies of its superblock."""
    if volume.kind != "lvm" and (volume.part_type not in LINUX_TYPES or volume.part_type in LVM_TYPES):
        return None
    rescue = case.rescue
    if await ext_copy(rescue, volume.device):
        return "ext4"
    if await rescue.read_device(volume.device, _BTRFS_COPY_AT, 8) == _BTRFS_MAGIC:
        return "btrfs"
    return "xfs" if await _is_lost_xfs(rescue, volume) else None


async def ext_copy(rescue: Rescue, device: str) -> tuple[int, int] | None:
    """Block size and block of a superblock's copy, None without one."""
    for size, block in _EXT_COPIES:
        if await rescue.read_device(device, size * block + _EXT_MAGIC_AT, 2) == _EXT_MAGIC:
            return size, block
    return None


async def _is_lost_xfs(rescue: Rescue, volume: Volume) -> bool:
    """A secondary superblock stands at the start of each allocation group: a divisor of the volume."""
    for groups in (4, 2, 8, 16, 32):
        at = volume.size // groups
        for start in (at // 4096 * 4096, -(-at // 4096) * 4096):
            if await rescue.read_device(volume.device, start, 4) == b"XFSB":
                return True
    return False


async def _check_ext(case: Case, device: str) -> RescueOutput:
    return await case.rescue.run("e2fsck", "-f", "-n", device, accept=None)


async def _repair_ext(case: Case, device: str) -> str:
    """What can be mended without a choice first, then everything; by a copy where the superblock is lost."""
    if (await case.rescue.run("e2fsck", "-f", "-p", device, accept=None)).status in {0, 1}:
        return "e2fsck -p"
    copy = await ext_copy(case.rescue, device)
    attempts: list[tuple[str, ...]] = [()]
    if copy:
        attempts.append(("-B", str(copy[0]), "-b", str(copy[1])))
    said = None
    for options in attempts:
        said = await case.rescue.run("e2fsck", "-f", "-y", *options, device, accept=None)
        _require_root(device, "ext", said)
        if said.status in _E2FSCK_MENDED:
            return " ".join(["e2fsck -f -y", *options])
    if said is None:
        raise ValueError("e2fsck was not run")
    raise _beyond_repair(device, "ext", said)


async def _check_xfs(case: Case, device: str) -> RescueOutput:
    return await case.rescue.run("xfs_repair", "-n", device, accept=None)


async def _repair_xfs(case: Case, device: str) -> str:
    rescue = case.rescue
    said = await rescue.run("xfs_repair", device, accept=None)
    if said.status == _XFS_DIRTY_LOG:
        # Mounting replays the log; only then may xfs_repair work.
        mounted = await rescue.run("mount", device, rescue.sysroot, accept=None)
        if mounted.status == 0:
            await rescue.run("umount", rescue.sysroot)
            said = await rescue.run("xfs_repair", device, accept=None)
    if said.status == _XFS_DIRTY_LOG and getattr(case.parameters, "zero_log", False):
        await rescue.run("xfs_repair", "-L", device)
        return "xfs_repair -L, as parameters.zero_log allows"
    if said.status == _XFS_DIRTY_LOG:
        message = f"the log of the xfs on {device} cannot be replayed; parameters.zero_log throws it away"
        raise OperationFailed(ErrorCode.FS_CORRUPTION_UNRECOVERABLE, message, tool_output=said.text[-2000:])
    _require_root(device, "xfs", said)
    if said.status:
        raise _beyond_repair(device, "xfs", said)
    return "xfs_repair"


async def _check_btrfs(case: Case, device: str) -> RescueOutput:
    return await case.rescue.run("btrfs", "check", "--readonly", device, accept=None)


async def _repair_btrfs(case: Case, device: str) -> str:
    """Its superblock and its log are mended; damaged trees are not, since that loses data."""
    rescue = case.rescue
    await rescue.run("btrfs", "rescue", "super-recover", "-y", device, accept=None)
    if (await _check_btrfs(case, device)).status == 0:
        return "btrfs rescue super-recover"
    await rescue.run("btrfs", "rescue", "zero-log", device, accept=None)
    return "btrfs rescue super-recover, zero-log"


async def _check_fat(case: Case, device: str) -> RescueOutput:
    return await case.rescue.run("fsck.vfat", "-n", device, accept=None)


async def _repair_fat(case: Case, device: str) -> str:
    said = await case.rescue.run("fsck.vfat", "-a", "-w", device, accept=None)
    if said.status not in _FSCK_FAT_CHANGED:
        raise _beyond_repair(device, "vfat", said)
    return "fsck.vfat -a"


_EXT: Final = (_check_ext, _repair_ext)
_TOOLS: Final[Mapping[str, tuple[Clean, Callable[[Case, str], Awaitable[str]]]]] = {
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "xfs": (_check_xfs, _repair_xfs),
    "btrfs": (_check_btrfs, _repair_btrfs),
    "vfat": (_check_fat, _repair_fat),
}
_MOUNTED: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs"})
