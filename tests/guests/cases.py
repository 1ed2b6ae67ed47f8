"""What is tried on which guest: the operation, how the guest is broken for it, and what has to come of it."""

from typing import Any, Final

import msgspec


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. `decisive` are the actions of which at least one has to be applied.

    `boots_before` is false where the breakage keeps the guest from booting. `repeatable` operations have
    nothing to do on their own result.
    """

    operation: str
    guest: str
    breakage: str
    decisive: frozenset[str]
    boots_before: bool = False
    repeatable: bool = True
    parameters: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return f"{self.operation}-{self.guest}"


_EVERYTHING: Final = frozenset({"fstab", "initramfs_regenerate"})
_BREAKAGES: Final[tuple[tuple[str, str, frozenset[str], tuple[str, ...]], ...]] = (
    ("offline_fix", "everything", _EVERYTHING, ("uefi", "lvm", "xfs", "btrfs")),
    (
        "initramfs_regenerate",
        "no-virtio",
        frozenset({"initramfs_regenerate"}),
        ("xfs", "lvm", "btrfs", "uefi"),
    ),
    ("lvm_repair", "volume-label", frozenset({"pv_restore"}), ("lvm",)),
    ("fs_repair", "superblock", frozenset({"fsck"}), ("btrfs", "lvm", "xfs", "uefi")),
    ("boot_repair", "boot-code", frozenset({"boot_loader"}), ("lvm", "xfs", "btrfs")),
    ("boot_repair", "fallback-loader", frozenset({"boot_loader"}), ("uefi",)),
    ("selinux_prep", "selinux", frozenset({"selinux_relabel"}), ("xfs", "lvm", "btrfs", "uefi")),
)
_HARMLESS: Final = frozenset({"selinux"})
_CONVERTED: Final = (("uefi", "vhdx"), ("lvm", "vmdk"), ("xfs", "qcow2"), ("btrfs", "vdi"))

_REPAIRED: Final = tuple(
    Case(
        operation=operation,
        guest=guest,
        breakage=breakage,
        decisive=decisive,
        boots_before=breakage in _HARMLESS,
    )
    for operation, breakage, decisive, guests in _BREAKAGES
    for guest in guests
)
_ONLY_CONVERTED: Final = tuple(
    Case(
        operation="convert",
        guest=guest,
        breakage="none",
        decisive=frozenset({"convert"}),
        boots_before=True,
        repeatable=False,
        parameters={"output_format": target},
    )
    for guest, target in _CONVERTED
)
CASES: Final = (*_REPAIRED, *_ONLY_CONVERTED)
"""The longest first, so that none is left running alone at the end."""

OF_EACH_FAMILY: Final = frozenset(
    next(each.name for each in CASES if each.operation == operation)
    for operation in {each.operation: None for each in CASES}
)
"""One guest for each operation: what there is time for on every change."""
