"""What would keep a guest from booting on KVM with a virtio disk, judged from facts. No input or output."""

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from workers.guest.kernels import BOOT_DRIVERS, Kernel
from workers.survey.facts import GuestFacts, MountFacts, SystemFacts

Weight = Literal["fatal", "unread", "remark"]
Boots = Literal["yes", "no", "unknown"]

_OPENING: Final[dict[Boots, str]] = {
    "yes": "should boot on KVM",
    "no": "will not boot on KVM",
    "unknown": "cannot be told to boot on KVM",
}
_MOVED: Final = "it is another device on a virtio disk"
_OLD_AGENTS: Final = frozenset({"open-vm-tools", "vmware-tools"})


class Reason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finding: a `fatal` one keeps the guest from booting, an `unread` one leaves that open.

    `mended_by` is the operation that does something about it.
    """

    weight: Weight
    words: str
    mended_by: str | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the guest boots on KVM, as one sentence and with every reason."""

    boots: Boots
    sentence: str
    reasons: tuple[Reason, ...] = ()


def judge(facts: GuestFacts) -> Verdict:
    """The verdict on a whole disk. The fatal reasons come first, then what could not be read."""
    reasons = sorted(_reasons(facts), key=lambda each: ("fatal", "unread", "remark").index(each.weight))
    weights = {each.weight for each in reasons}
    boots: Boots = "no" if "fatal" in weights else "unknown" if "unread" in weights else "yes"
    decisive = [each.words for each in reasons if each.weight != "remark"]
    sentence = f"{_OPENING[boots]}: {'; '.join(decisive)}" if decisive else _OPENING[boots]
    return Verdict(boots=boots, sentence=sentence, reasons=tuple(reasons))


def _reasons(facts: GuestFacts) -> Iterator[Reason]:
    for device, words in facts.damaged.items():
        weight: Weight = "remark" if facts.systems else "fatal"
        yield Reason(weight=weight, words=f"{device} does not mount: {words}", mended_by="fs_repair")
    for group in facts.groups:
        if group.missing:
            words = f"the volume group {group.name} lacks {group.missing} of its disks"
            yield Reason(weight="fatal", words=words, mended_by="lvm_repair")
    if not facts.systems:
        yield from _without_linux(facts)
    if len(facts.systems) > 1:
        names = ", ".join(f"{each.name} on {each.root}" for each in facts.systems)
        yield Reason(weight="unread", words=f"the disk holds several systems: {names}")
    for system in facts.systems:
        yield from _of_system(system)


def _without_linux(facts: GuestFacts) -> Iterator[Reason]:
    if facts.windows:
        words = f"{facts.windows[0].name} needs virtio drivers of its own"
        yield Reason(weight="unread", words=words, mended_by="offline_fix")
    elif facts.encrypted:
        yield Reason(weight="unread", words=f"encrypted: {', '.join(facts.encrypted)}")
    elif not facts.damaged:
        yield Reason(weight="fatal", words="no operating system was found")


def _of_system(system: SystemFacts) -> Iterator[Reason]:
    yield from _kernels(system)
    loader = system.loader
    if loader.loader_fault:
        yield Reason(weight="fatal", words=loader.loader_fault, mended_by="boot_repair")
    for fault in loader.config_faults:
        yield Reason(weight="fatal", words=f"boot configuration: {fault}", mended_by="boot_repair")
    for mount in system.mounts:
        yield from _mount(mount)
    for problem in system.problems:
        # What fstab names in vain has been judged above.
        if not problem.startswith("fstab names"):
            yield Reason(weight="remark", words=problem)
    yield from _surroundings(system)


def _kernels(system: SystemFacts) -> Iterator[Reason]:
    if not system.kernels:
        yield Reason(weight="fatal", words="/boot holds no kernel")
        return
    *older, newest = system.kernels
    yield from _kernel(newest, "fatal")
    for kernel in older:
        yield from _kernel(kernel, "remark")


def _kernel(kernel: Kernel, weight: Weight) -> Iterator[Reason]:
    if kernel.drivers is None:
        words = f"initramfs of {kernel.version} cannot be read"
        yield Reason(weight="unread" if weight == "fatal" else "remark", words=words)
        return
    missing = ", ".join(kernel.lacks(BOOT_DRIVERS))
    if missing:
        holder = (
            f"initramfs of {kernel.version}" if kernel.initramfs else f"{kernel.version}, without initramfs,"
        )
        yield Reason(weight=weight, words=f"{holder} has no {missing}", mended_by="initramfs_regenerate")


def _mount(mount: MountFacts) -> Iterator[Reason]:
    """A device that never comes keeps systemd from reaching multi-user, unless fstab says nofail.

    The root is mounted by what the kernel is told, and systemd waits for no swap.
    """
    if mount.lasting and mount.device:
        return
    spared = mount.optional or mount.mount_point == "/" or mount.filesystem == "swap"
    weight: Weight = "remark" if spared else "fatal"
    why = _MOVED if mount.device else "which is not on this disk"
    words = f"fstab names {mount.spec} for {mount.mount_point}, {why}"
    yield Reason(weight=weight, words=words, mended_by="offline_fix")


def _surroundings(system: SystemFacts) -> Iterator[Reason]:
    old = sorted(_OLD_AGENTS.intersection(system.agents))
    if old:
        words = f"{', '.join(old)} is of no use on KVM"
        yield Reason(weight="remark", words=words, mended_by="offline_fix")
    if system.network.persistent_rules:
        words = "udev rules give network names to the old hypervisor's cards"
        yield Reason(weight="remark", words=words, mended_by="offline_fix")
    if system.selinux and system.selinux.mode == "enforcing" and system.selinux.labelled is False:
        words = "SELinux is enforcing, and files have no labels"
        yield Reason(weight="fatal", words=words, mended_by="selinux_prep")
