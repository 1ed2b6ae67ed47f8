"""The verdict on a guest: what keeps it from booting on KVM, and no more than that."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.guest.kernels import Kernel
from workers.survey.facts import (
    GroupFacts,
    GuestFacts,
    LoaderFacts,
    MountFacts,
    NetworkFacts,
    SelinuxFacts,
    SystemFacts,
    WindowsFacts,
)
from workers.survey.verdict import judge

ALL = {"virtio_pci": True, "virtio_blk": True}
GOOD = Kernel(version="6.1.0", image="/boot/vmlinuz-6.1.0", initramfs="/boot/initrd.img-6.1.0", drivers=ALL)
OLD = msgspec.structs.replace(GOOD, version="5.10.0", drivers={"virtio_pci": True, "virtio_blk": False})
BARE = msgspec.structs.replace(GOOD, drivers={"virtio_pci": True, "virtio_blk": False})
UNREAD = msgspec.structs.replace(GOOD, drivers=None)
ROOT = MountFacts(spec="UUID=1", mount_point="/", filesystem="ext4", device="/dev/vda1")
MOVED_ROOT = MountFacts(
    spec="/dev/sda2", mount_point="/", filesystem="ext4", device="/dev/vda2", lasting=False
)
MOVED_BOOT = msgspec.structs.replace(MOVED_ROOT, spec="/dev/sda1", mount_point="/boot")
GONE = MountFacts(spec="/dev/sdb1", mount_point="/srv", filesystem="xfs", lasting=False)
WINDOWS = WindowsFacts(root="/dev/vda1", name="Windows Server 2022", version="10.0", architecture="x86_64")


def system(**more: Any) -> SystemFacts:
    facts = {"kernels": (GOOD,), "mounts": (ROOT,), "loader": LoaderFacts(firmware="bios")}
    return SystemFacts(id="debian", name="Debian 12", root="/dev/vda1", **{**facts, **more})


def guest(*systems: SystemFacts, **more: Any) -> GuestFacts:
    return GuestFacts(scheme="gpt", systems=systems, **more)


LOADER = LoaderFacts(firmware="bios", loader_fault="the disk has no boot code")
CONFIG = LoaderFacts(firmware="bios", config_faults=("it says root=/dev/sda2",))
FATAL = [
    (system(kernels=(BARE,)), "initramfs of 6.1.0 has no virtio_blk", "initramfs_regenerate"),
    (system(kernels=()), "/boot holds no kernel", None),
    (system(loader=LOADER), "the disk has no boot code", "boot_repair"),
    (system(loader=CONFIG), "boot configuration: it says root=/dev/sda2", "boot_repair"),
    (system(mounts=(GONE,)), "fstab names /dev/sdb1 for /srv, which is not on this disk", "offline_fix"),
    (
        system(mounts=(MOVED_BOOT,)),
        "fstab names /dev/sda1 for /boot, it is another device on a virtio disk",
        "offline_fix",
    ),
    (
        system(selinux=SelinuxFacts(mode="enforcing", labelled=False)),
        "SELinux is enforcing, and files have no labels",
        "selinux_prep",
    ),
]


@pytest.mark.parametrize(("found", "words", "mended_by"), FATAL, ids=[each[1] for each in FATAL])
def test_what_keeps_a_guest_from_booting_is_named_with_what_mends_it(
    found: SystemFacts, words: str, mended_by: str | None
) -> None:
    verdict = judge(guest(found))
    assert (verdict.boots, verdict.sentence) == ("no", f"will not boot on KVM: {words}")
    assert verdict.reasons[0].mended_by == mended_by


def test_all_reasons_stand_in_one_sentence() -> None:
    verdict = judge(guest(system(kernels=(BARE,), mounts=(ROOT, GONE))))
    assert verdict.sentence == (
        "will not boot on KVM: initramfs of 6.1.0 has no virtio_blk; "
        "fstab names /dev/sdb1 for /srv, which is not on this disk"
    )


HARMLESS = [
    system(),
    system(mounts=(MOVED_ROOT,)),
    system(mounts=(msgspec.structs.replace(GONE, optional=True),)),
    system(mounts=(msgspec.structs.replace(GONE, filesystem="swap", mount_point="none"),)),
    system(kernels=(OLD, GOOD)),
    system(agents=("open-vm-tools",), network=NetworkFacts(persistent_rules=True)),
    system(selinux=SelinuxFacts(mode="permissive", labelled=False)),
    system(selinux=SelinuxFacts(mode="enforcing", labelled=None)),
]


@pytest.mark.parametrize("found", HARMLESS)
def test_what_a_guest_boots_with_is_a_remark_at_most(found: SystemFacts) -> None:
    verdict = judge(guest(found))
    assert (verdict.boots, verdict.sentence) == ("yes", "should boot on KVM")
    assert {each.weight for each in verdict.reasons} <= {"remark"}


UNKNOWN = [
    (guest(system(kernels=(UNREAD,))), "initramfs of 6.1.0 cannot be read"),
    (guest(windows=(WINDOWS,)), "Windows Server 2022 needs virtio drivers of its own"),
    (guest(encrypted=("/dev/vda2",)), "encrypted: /dev/vda2"),
    (guest(system(), system()), "several systems"),
]


@pytest.mark.parametrize(("facts", "words"), UNKNOWN, ids=[each[1] for each in UNKNOWN])
def test_what_could_not_be_read_is_not_judged(facts: GuestFacts, words: str) -> None:
    verdict = judge(facts)
    assert verdict.boots == "unknown"
    assert words in verdict.sentence


DISKS = [
    (guest(), "no operating system was found", None),
    (guest(damaged={"/dev/vda1": "bad superblock"}), "/dev/vda1 does not mount: bad superblock", "fs_repair"),
    (
        guest(system(), groups=(GroupFacts(name="vg", size=1, free=0, volumes=("root",), missing=1),)),
        "the volume group vg lacks 1 of its disks",
        "lvm_repair",
    ),
]


@pytest.mark.parametrize(("facts", "words", "mended_by"), DISKS, ids=[each[1] for each in DISKS])
def test_disk_without_a_readable_system_does_not_boot(
    facts: GuestFacts, words: str, mended_by: str | None
) -> None:
    verdict = judge(facts)
    assert (verdict.boots, verdict.reasons[0].mended_by) == ("no", mended_by)
    assert words in verdict.sentence


SYSTEMS = st.lists(
    st.sampled_from([each[0] for each in FATAL] + HARMLESS + [system(kernels=(UNREAD,))]), max_size=2
)


@given(SYSTEMS)
def test_verdict_follows_from_its_gravest_reason(systems: list[SystemFacts]) -> None:
    verdict = judge(guest(*systems))
    weights = [each.weight for each in verdict.reasons]
    gravest = next((each for each in ("fatal", "unread") if each in weights), "remark")
    assert verdict.boots == {"fatal": "no", "unread": "unknown", "remark": "yes"}[gravest]
    order = [("fatal", "unread", "remark").index(each) for each in weights]
    assert all(one <= other for one, other in itertools.pairwise(order))
