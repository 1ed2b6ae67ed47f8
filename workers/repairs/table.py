"""Which action does what, by the names that `subjects.builtin` declares."""

from collections.abc import Mapping
from typing import Final

from workers.repairs import boot, filesystems, initramfs, lvm, selinux, system
from workers.repairs.case import Repair

REPAIRS: Final[Mapping[str, Repair]] = {
    "pv_restore": Repair(work=lvm.pv_restore, stage="disk"),
    "vg_check": Repair(work=lvm.vg_check, stage="disk"),
    "duplicate_vgs": Repair(work=lvm.duplicate_vgs, stage="disk"),
    "activate": Repair(work=lvm.activate, stage="disk"),
    "fsck": Repair(work=filesystems.fsck, stage="disk"),
    "fstab": Repair(work=system.fstab),
    "vmware_tools": Repair(work=system.vmware_tools, vital=False),
    "network_names": Repair(work=system.network_names, vital=False),
    "cloud_init": Repair(work=system.cloud_init, vital=False),
    "devices_file": Repair(work=lvm.devices_file, stage="if mounted"),
    "console": Repair(work=boot.console, vital=False),
    "root_argument": Repair(work=boot.root_argument),
    "initramfs_regenerate": Repair(work=initramfs.initramfs_regenerate),
    "boot_loader": Repair(work=boot.boot_loader),
    "boot_config": Repair(work=boot.boot_config),
    "selinux_relabel": Repair(work=selinux.selinux_relabel),
}
