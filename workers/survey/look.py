"""Looks into a guest: every filesystem is mounted once, and its settings are read."""

import re
from typing import Final

import msgspec

from h2kbus.errors import OperationFailed
from workers.guest import fstab
from workers.guest.disks import Disks, Volume
from workers.guest.kernels import read_kernels
from workers.guest.rescue import Rescue
from workers.guest.systems import Root, System, mount, search
from workers.process import ToolRunner
from workers.repairs import boot, lvm, selinux, system
from workers.repairs.case import Case
from workers.report import ActionNotes
from workers.survey.facts import (
    GroupFacts,
    GuestFacts,
    LoaderFacts,
    MountFacts,
    NetworkFacts,
    SelinuxFacts,
    SystemFacts,
    VolumeFacts,
    WindowsFacts,
)

DRIVERS: Final = ("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net")
_MACHINES: Final = {3: "i686", 21: "ppc64le", 22: "s390x", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""ELF machine numbers (System V ABI)."""

_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_PROGRAMS: Final = ("/usr/bin/env", "/bin/sh", "/sbin/init")
_AGENTS: Final = {
    "open-vm-tools": ("/usr/bin/vmtoolsd",),
    "vmware-tools": ("/usr/bin/vmware-uninstall-tools.pl",),
    "qemu-guest-agent": ("/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"),
    "cloud-init": ("/usr/bin/cloud-init",),
    "hyper-v daemons": ("/usr/sbin/hv_kvp_daemon", "/usr/sbin/hypervkvpd"),
    "xe-guest-utilities": ("/usr/sbin/xe-daemon",),
    "waagent": ("/usr/sbin/waagent", "/usr/bin/waagent"),
}
_NETWORKS: Final = {
    "ifupdown": "/etc/network/interfaces",
    "netplan": "/etc/netplan",
    "NetworkManager": "/etc/NetworkManager/system-connections",
    "network-scripts": "/etc/sysconfig/network-scripts",
    "systemd-networkd": "/etc/systemd/network",
}


async def look(rescue: Rescue, tools: ToolRunner, notes: ActionNotes) -> GuestFacts:
    """Everything that can be seen of a guest. Raises OperationFailed if the disk itself cannot be read."""
    case = Case(rescue, tools, notes, None)
    await case.read_disks()
    found = await search(rescue, case.disks)
    usage: dict[str, tuple[str, int, int]] = {}
    systems = [await _look_at(case, root, usage) for root in found.roots]
    return GuestFacts(
        scheme=case.disks.scheme,
        volumes=tuple(_volume(each, usage.get(each.device)) for each in case.disks.volumes),
        groups=tuple(await _groups(case)),
        systems=tuple(systems),
        windows=tuple(msgspec.convert(each, WindowsFacts) for each in found.windows),
        encrypted=tuple(each.device for each in case.disks.encrypted),
        damaged=found.damaged,
    )


def _volume(volume: Volume, usage: tuple[str, int, int] | None) -> VolumeFacts:
    mounted_on, used, free = usage or (None, None, None)
    return VolumeFacts(**msgspec.structs.asdict(volume), mounted_on=mounted_on, used=used, free=free)


async def _groups(case: Case) -> list[GroupFacts]:
    volumes = await lvm.listed(case, "lvs", "vg_name,lv_name")
    rows = await lvm.listed(case, "vgs", "vg_name,vg_size,vg_free,vg_missing_pv_count")
    return [
        GroupFacts(
            name=each["vg_name"],
            size=lvm.number(each["vg_size"]),
            free=lvm.number(each["vg_free"]),
            volumes=tuple(one["lv_name"] for one in volumes if one["vg_name"] == each["vg_name"]),
            missing=lvm.number(each["vg_missing_pv_count"]),
        )
        for each in rows
    ]


async def _look_at(case: Case, root: Root, usage: dict[str, tuple[str, int, int]]) -> SystemFacts:
    """One system, mounted for as long as that takes."""
    mounted = await mount(case.rescue, case.disks, root)
    case.enter(mounted)
    try:
        usage |= await _usage(case.rescue, mounted)
        return await _system(case, mounted)
    finally:
        await case.rescue.unmount()


async def _system(case: Case, mounted: System) -> SystemFacts:
    release = mounted.root.release
    rescue = case.rescue
    hostname = await rescue.read_shown("/etc/hostname")
    return SystemFacts(
        id=release.id,
        name=release.name,
        version=release.version,
        family=release.family,
        root=mounted.root.volume.device,
        architecture=await _architecture(rescue),
        hostname=hostname.strip() if hostname else None,
        kernels=tuple(await read_kernels(rescue, case.tools, DRIVERS)),
        loader=await _loader(case),
        mounts=tuple(_mount(each, case.disks) for each in mounted.entries if each.names_device),
        network=await _network(case),
        selinux=await _selinux(rescue),
        agents=tuple([name for name, paths in _AGENTS.items() if await _any(rescue, paths)]),
        problems=mounted.problems,
    )


def _mount(entry: fstab.Entry, disks: Disks) -> MountFacts:
    volume = fstab.resolve(entry.spec, disks.volumes)
    return MountFacts(
        spec=entry.spec,
        mount_point=entry.mount_point,
        filesystem=entry.filesystem,
        device=volume.device if volume else None,
        lasting=not fstab.is_fragile(entry.spec),
        optional=entry.optional,
    )


async def _loader(case: Case) -> LoaderFacts:
    firmware = case.disks.boots_by
    config, _ = await boot.menu(case)
    return LoaderFacts(
        firmware=firmware,
        config=config,
        loader_fault=await boot.loader_fault(case, firmware),
        config_faults=tuple(await boot.config_faults(case)),
    )


async def _network(case: Case) -> NetworkFacts:
    names, tied = await system.configured_interfaces(case)
    return NetworkFacts(
        configured_by=tuple([name for name, path in _NETWORKS.items() if await _holds(case.rescue, path)]),
        interfaces=tuple(names),
        tied_to_mac=tied,
        persistent_rules=await case.rescue.exists(system.NET_RULES),
    )


async def _selinux(rescue: Rescue) -> SelinuxFacts | None:
    text = await rescue.read_shown(selinux.CONFIG)
    if text is None:
        return None
    settings = {each["key"]: each["value"] for each in selinux.SETTING.finditer(text)}
    said = await rescue.run("stat", "--format=%C", f"{rescue.sysroot}/etc/fstab", accept=None)
    labelled = None if said.status and "No data" not in said.text else said.status == 0 and ":" in said.out
    return SelinuxFacts(
        mode=settings.get("SELINUX", "disabled"), policy=settings.get("SELINUXTYPE"), labelled=labelled
    )


async def _architecture(rescue: Rescue) -> str | None:
    for path in _PROGRAMS:
        head = await rescue.read(path, 20)
        if head and head.startswith(b"\x7fELF"):
            return _MACHINES.get(int.from_bytes(head[18:20], "little"))
    return None


async def _any(rescue: Rescue, paths: tuple[str, ...]) -> bool:
    return any([await rescue.exists(each) for each in paths])


async def _holds(rescue: Rescue, path: str) -> bool:
    found = await rescue.kind(path)
    return found.kind == "file" or bool(await rescue.names(path))


async def _usage(rescue: Rescue, mounted: System) -> dict[str, tuple[str, int, int]]:
    """By device: where it is mounted, and its used and free bytes."""
    found: dict[str, tuple[str, int, int]] = {}
    for place, volume in mounted.mounted.items():
        target = f"{rescue.sysroot}{place}".rstrip("/")
        try:
            said = await rescue.run("stat", "--file-system", "--format=%S %b %f", target)
        except OperationFailed:
            continue
        numbers = said.out.split()
        if len(numbers) == 3 and all(_NUMBER.fullmatch(each) for each in numbers):  # noqa: PLR2004 - as asked
            size, blocks, free = map(int, numbers)
            found[volume.device] = (place, (blocks - free) * size, free * size)
    return found
