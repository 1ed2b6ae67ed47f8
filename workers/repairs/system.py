"""The guest's own settings: names in its fstab, network names, agents of the old hypervisor, cloud-init."""

import re
from typing import Final

import msgspec

from workers.guest import fstab as table
from workers.guest.fstab import Entry
from workers.repairs.case import Case

FSTAB: Final = "/etc/fstab"
NET_RULES: Final = "/etc/udev/rules.d/70-persistent-net.rules"
NAME_LINK: Final = "/etc/systemd/network/70-h2kbus-name.link"
CLOUD_DROP_IN: Final = "/etc/cloud/cloud.cfg.d/99-h2kbus-datasource.cfg"
INTERFACES: Final = "/etc/network/interfaces"
_DATASOURCES: Final = "datasource_list: [NoCloud, ConfigDrive, OpenStack, None]\n"
_IFUPDOWN: Final = re.compile(r"^[ \t]*iface[ \t]+(?P<name>\S+)", re.MULTILINE)
_NETPLAN: Final = re.compile(r"^ {4}(?P<name>e[a-z0-9]+):\s*$", re.MULTILINE)
_IFCFG: Final = re.compile(r"ifcfg-(?P<name>e[\w.-]+)")
_KEYFILE: Final = re.compile(r"^interface-name=(?P<name>\S+)", re.MULTILINE)
_TIED_TO_MAC: Final = re.compile(r"macaddress:|HWADDR=|mac-address=|hwaddress", re.IGNORECASE)
_PREDICTABLE: Final = re.compile(r"e(?:n[opsx]|th)\w+")
_VMWARE_PACKAGES: Final = ("open-vm-tools-desktop", "open-vm-tools")
_VMWARE_UNINSTALL: Final = "/usr/bin/vmware-uninstall-tools.pl"


async def fstab(case: Case) -> None:
    """Name every device by what lasts, and let the guest come up without those that are not on this disk."""
    text = await case.rescue.read_text(FSTAB)
    if text is None:
        return case.notes.add("fstab", "skipped", "the guest has no fstab")
    said: list[str] = []
    after = table.rewritten(text, lambda entry: _lasting(case, entry, said))
    if after == text:
        return case.notes.add("fstab", "not needed", "every entry names its device by a lasting name")
    await case.rescue.write_text(FSTAB, after)
    return case.notes.add("fstab", "applied", "; ".join(said))


def _lasting(case: Case, entry: Entry, said: list[str]) -> Entry:
    """The entry as it should be; what was changed is added to `said`."""
    if not entry.names_device:
        return entry
    volume = table.resolve(entry.spec, case.disks.volumes)
    if volume is None and entry.mount_point == "/":
        volume = case.system.root.volume
    name = table.lasting_name(volume) if volume else None
    if name and (table.is_fragile(entry.spec) or table.resolve(entry.spec, case.disks.volumes) is None):
        said.append(f"{entry.mount_point}: {entry.spec} is now {name}")
        return msgspec.structs.replace(entry, spec=name)
    if volume is None and not entry.optional:
        said.append(f"{entry.mount_point}: {entry.spec} is not on this disk, nofail added")
        return msgspec.structs.replace(entry, options=(*(entry.options or ("defaults",)), "nofail"))
    return entry


async def network_names(case: Case) -> None:
    """Keep the network card's name, which its configuration goes by, though its place on the bus changes.

    That can be done for one card without a MAC address in its configuration; of several nobody can say
    which will be which.
    """
    done = []
    if await case.rescue.exists(NET_RULES):
        await case.rescue.rename(NET_RULES, f"{NET_RULES}.before-kvm")
        done.append(f"{NET_RULES} was put aside")
    names, tied = await configured_interfaces(case)
    moving = [each for each in names if _PREDICTABLE.fullmatch(each)]
    kept = await case.rescue.exists(NAME_LINK)
    if len(moving) == 1 and not tied and not kept and moving[0] != "eth0":
        await case.rescue.write_text(NAME_LINK, f"[Match]\nDriver=virtio_net\n\n[Link]\nName={moving[0]}\n")
        done.append(f"the virtio card is called {moving[0]} as before")
    if done:
        return case.notes.add("network_names", "applied", "; ".join(done))
    if len(moving) > 1 and not tied and not kept:
        words = f"{', '.join(moving)} are configured by name, and without their MAC addresses"
        return case.notes.add("network_names", "skipped", words)
    return case.notes.add("network_names", "not needed", f"configured: {', '.join(sorted(names)) or 'none'}")


async def configured_interfaces(case: Case) -> tuple[list[str], bool]:
    """The names that the guest's network configuration goes by, and whether it knows MAC addresses."""
    names: set[str] = set()
    tied = False
    for path, pattern in await _network_files(case):
        text = await case.rescue.read_text(path) or ""
        names.update(each["name"] for each in pattern.finditer(text))
        tied = tied or bool(_TIED_TO_MAC.search(text))
    scripts = await case.rescue.names("/etc/sysconfig/network-scripts")
    names.update(match["name"] for each in scripts if (match := _IFCFG.fullmatch(each)))
    return sorted(names - {"lo"}), tied


async def _network_files(case: Case) -> list[tuple[str, re.Pattern[str]]]:
    places = (
        ("/etc/network/interfaces.d", _IFUPDOWN),
        ("/etc/netplan", _NETPLAN),
        ("/etc/NetworkManager/system-connections", _KEYFILE),
        ("/etc/sysconfig/network-scripts", _KEYFILE),
    )
    found = [(INTERFACES, _IFUPDOWN)]
    for directory, pattern in places:
        found += [(f"{directory}/{name}", pattern) for name in await case.rescue.names(directory)]
    return found


async def vmware_tools(case: Case) -> None:
    """Remove VMware's agents by the guest's own package manager."""
    removed = [each for each in _VMWARE_PACKAGES if await _remove_package(case, each)]
    if await case.rescue.exists(_VMWARE_UNINSTALL):
        await case.rescue.inside(_VMWARE_UNINSTALL)
        removed.append("VMware Tools")
    if removed:
        return case.notes.add("vmware_tools", "applied", f"removed {', '.join(removed)}")
    return case.notes.add("vmware_tools", "not needed", "the guest has none of VMware's agents")


async def _remove_package(case: Case, name: str) -> bool:
    rescue = case.rescue
    if await rescue.has_program("dpkg-query"):
        said = await rescue.inside("dpkg-query", "-W", "-f", "${Status}", name, accept=None)
        if said.status == 0 and "ok installed" in said.out:
            await rescue.inside("dpkg", "--purge", name)
            return True
        return False
    known = await rescue.has_program("rpm") and await rescue.inside("rpm", "-q", name, accept=None)
    if not known or known.status:
        return False
    await rescue.inside("rpm", "-e", name)
    return True


async def cloud_init(case: Case) -> None:
    """Have cloud-init look only where KVM hosts put its data, instead of waiting for the old cloud's."""
    if not await case.rescue.has_program("cloud-init"):
        return case.notes.add("cloud_init", "not needed", "the guest has no cloud-init")
    if await case.rescue.read_text(CLOUD_DROP_IN) == _DATASOURCES:
        return case.notes.add("cloud_init", "not needed", "its data sources are those of KVM hosts")
    await case.rescue.write_text(CLOUD_DROP_IN, _DATASOURCES)
    return case.notes.add("cloud_init", "applied", f"{_DATASOURCES.strip()} in {CLOUD_DROP_IN}")
