"""LVM: lost labels and metadata, clashing names, stale device files, and the proof that volumes activate."""

import re
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.disks import LINUX_TYPES, Volume
from workers.guest.rescue import RescueOutput
from workers.repairs.case import Case
from workers.tool_json import tool_json

DEVICES_FILE: Final = "/etc/lvm/devices/system.devices"
_METADATA: Final = re.compile(
    r"metadata at (?P<at>[0-9]{1,20}) length \d+ crc \S+ vg (?P<group>\S+) "
    r"seqno (?P<seqno>[0-9]{1,20}) id (?P<id>\S+)"
)
_PHYSICAL: Final = re.compile(
    r'pv\d+ \{\s*id = "(?P<id>[\w-]+)"[^{}]*?dev_size = (?P<sectors>[0-9]{1,20})', re.DOTALL
)
_NUMBER: Final = re.compile(r"[0-9]{1,20}B?")
_SECTOR: Final = 512
_FOUND_AT: Final = "/tmp/h2kbus.vg"  # noqa: S108 - inside the rescue environment, which is nobody else's


class _Told(msgspec.Struct, frozen=True):
    report: list[dict[str, list[dict[str, str]]]]


class _Group(msgspec.Struct, frozen=True):
    name: str
    uuid: str
    missing: int


async def pv_restore(case: Case) -> None:
    """Write lost labels and headers of physical volumes again, from the metadata that is still there."""
    restored = []
    for volume in case.disks.volumes:
        unmarked = volume.filesystem is None and volume.part_type in LINUX_TYPES
        if unmarked and (group := await _restore(case, volume)):
            restored.append(f"{volume.device} (volume group {group})")
    if not restored:
        return case.notes.add("pv_restore", "not needed", "every physical volume has its label and metadata")
    await case.read_disks()
    return case.notes.add("pv_restore", "applied", f"pvck --repair of {', '.join(restored)}")


async def _restore(case: Case, volume: Volume) -> str | None:
    """Repair one; the name of its group, or None if it never was a physical volume."""
    dump = ("pvck", "--dump", "metadata_search")
    said = await case.rescue.run(*dump, volume.device, accept=None)
    found = max(_METADATA.finditer(said.out), key=lambda each: int(each["seqno"]), default=None)
    if found is None:
        return None
    newest = ("--settings", f"metadata_offset={found['at']}", "--file", _FOUND_AT)
    await case.rescue.run(*dump, *newest, volume.device)
    text = (await case.rescue.run("cat", _FOUND_AT)).out
    # Asked for by its id: pvck goes by the device's old name otherwise, which the disk has left behind.
    which = ("--settings", f"pv_uuid={_physical_volume(text, volume)}")
    await case.rescue.run("pvck", "--yes", "--repair", *which, "--file", _FOUND_AT, volume.device)
    return found["group"]


def _physical_volume(metadata: str, volume: Volume) -> str:
    """Which physical volume of a group this one was, by its size. Raises REPAIR_FAILED."""
    found = {each["id"]: int(each["sectors"]) * _SECTOR for each in _PHYSICAL.finditer(metadata)}
    same = [uuid for uuid, size in found.items() if size == volume.size] or list(found)
    if len(same) != 1:
        message = f"{volume.device} may be any of {len(same)} physical volumes of its group"
        raise OperationFailed(ErrorCode.REPAIR_FAILED, message)
    return same[0]


async def vg_check(case: Case) -> None:
    """Let LVM hold every group's metadata against itself. Raises REPAIR_FAILED for a missing disk."""
    groups = await _groups(case)
    if not groups:
        return case.notes.add("vg_check", "not needed", "the disk has no volume group")
    mended = []
    for group in groups:
        if group.missing:
            message = (
                f"the volume group {group.name} lacks {group.missing} of its disks: give all of its disks"
            )
            raise OperationFailed(ErrorCode.REPAIR_FAILED, message)
        if (await case.rescue.run("lvm", "vgck", group.name, accept=None)).status:
            await case.rescue.run("lvm", "vgck", "--updatemetadata", group.name)
            mended.append(group.name)
    if mended:
        return case.notes.add("vg_check", "applied", f"vgck --updatemetadata of {', '.join(mended)}")
    return case.notes.add("vg_check", "not needed", f"consistent: {', '.join(each.name for each in groups)}")


async def duplicate_vgs(case: Case) -> None:
    """Two groups of one name hide each other. They get names of their own if the job allows it."""
    groups = await _groups(case)
    names = [each.name for each in groups]
    doubled = [each for position, each in enumerate(groups) if each.name in names[:position]]
    if not doubled:
        return case.notes.add("duplicate_vgs", "not needed", "every volume group has a name of its own")
    if not getattr(case.parameters, "rename_duplicates", False):
        known = ", ".join(f"{each.name} ({each.uuid})" for each in groups)
        message = f"several volume groups have one name: {known}; parameters.rename_duplicates mends it"
        raise OperationFailed(ErrorCode.REPAIR_FAILED, message)
    for group in doubled:
        await case.rescue.run("lvm", "vgrename", group.uuid, f"{group.name}_{group.uuid[:6]}")
    await case.read_disks()
    renamed = ", ".join(f"{each.name} to {each.name}_{each.uuid[:6]}" for each in doubled)
    return case.notes.add("duplicate_vgs", "applied", f"renamed {renamed}")


async def activate(case: Case) -> None:
    """Prove that every volume activates. Raises REPAIR_FAILED with LVM's words."""
    if not await _groups(case):
        return case.notes.add("activate", "not needed", "the disk has no volume group")
    said = await case.rescue.run("lvm", "vgchange", "--activate", "y", accept=None)
    asleep = [
        each["lv_name"] for each in await listed(case, "lvs", "lv_name,lv_active") if not each["lv_active"]
    ]
    if said.status or asleep:
        raise OperationFailed(
            ErrorCode.REPAIR_FAILED, f"volumes do not activate: {', '.join(asleep)}: {said.words}"
        )
    await case.read_disks()
    volumes = [each.device for each in case.disks.volumes if each.kind == "lvm"]
    return case.notes.add("activate", "not needed", f"all volumes activate: {', '.join(volumes)}")


async def devices_file(case: Case) -> None:
    """Put a list of devices away that names the old hypervisor's disks: LVM then looks at all of them."""
    text = await case.rescue.read_text(DEVICES_FILE)
    if text is None:
        return case.notes.add("devices_file", "not needed", "the guest keeps no list of LVM devices")
    await case.rescue.rename(DEVICES_FILE, f"{DEVICES_FILE}.before-kvm")
    return case.notes.add("devices_file", "applied", f"{DEVICES_FILE} is now {DEVICES_FILE}.before-kvm")


async def _groups(case: Case) -> list[_Group]:
    rows = await listed(case, "vgs", "vg_name,vg_uuid,vg_missing_pv_count")
    found = [_Group(each["vg_name"], each["vg_uuid"], number(each["vg_missing_pv_count"])) for each in rows]
    return sorted(found, key=lambda each: (each.name, each.uuid))


async def listed(case: Case, what: str, columns: str) -> list[dict[str, str]]:
    """What one of LVM's reports says, a row with all these columns for each line; sizes end in B.

    Raises TOOL_FAILED for a report that cannot be read.
    """
    options = ("--reportformat", "json", "--units", "b", "--options", columns)
    said: RescueOutput = await case.rescue.run("lvm", what, *options)
    told = tool_json(_Told, said.out.encode(), what)
    rows = [row for part in told.report for rows in part.values() for row in rows]
    if any(column not in row for row in rows for column in columns.split(",")):
        raise OperationFailed(ErrorCode.TOOL_FAILED, f"{what} left out what it was asked for", tool=what)
    return rows


def number(words: str) -> int:
    """A number or a size in bytes of a report. Raises TOOL_FAILED."""
    if not _NUMBER.fullmatch(words):
        raise OperationFailed(
            ErrorCode.TOOL_FAILED, f"lvm said {words[:40]!r}, which is no number", tool="lvm"
        )
    return int(words.removesuffix("B"))
