"""The operations of the protocol: what each takes, needs and does, as declarations."""

import posixpath
from pathlib import PurePosixPath
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from subjects.operations import OperationDeclaration, Phase
from subjects.spec import ImageFormat, JobSpec

OutputName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,250}$(?!\n)")]
DeviceName = Annotated[str, Meta(pattern=r"^/dev/[A-Za-z0-9_./+-]{1,250}$(?!\n)")]
MemberName = Annotated[str, Meta(pattern=r"^[^/\x00]{1,255}$(?!\n)")]
Firmware = Literal["auto", "bios", "uefi"]
DiskBus = Literal["virtio-blk", "virtio-scsi", "ide"]

QEMU_IMG = frozenset({"qemu-img"})
GUEST = frozenset({"qemu-img", "guestfs"})
QEMU_SYSTEM = frozenset({"qemu-system"})

ACCESS_ACTIONS = ("nbd_attach", "lvm_activate", "mount")
"""Actions of v1 documents that name the means. The disk is always reached; the report says by what."""


class ImageParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every operation takes that opens an image.

    `disk` names one of the disks inside an OVA, which need not be named if there is only one. With
    `allow_backing_chain` a qcow2 may build on other files, all of them below the root that it is below, and
    with `allow_snapshots` it may hold snapshots, which are not carried over. Both are refused otherwise, and
    what a job allowed stands in its log and its report.
    """

    disk: MemberName | None = None
    allow_backing_chain: bool = False
    allow_snapshots: bool = False


class InspectParameters(ImageParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is looked at.

    `disk` names one of the disks inside an OVA, which need not be named if there is only one. The action
    `info` is always done; `guest` looks inside, where the worker can, and is left out with a warning
    where it cannot. `nbd_attach` is known for the sake of v1 documents: it reads the partition table,
    and the report says that nothing had to be attached for it.
    """


class ConvertParameters(ImageParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the converted image is written.

    `compress` and `compression_type` apply to qcow2; a streamOptimized vmdk is always compressed by
    zlib; other formats cannot be compressed and are written plain, and the report says so. `subformat`
    applies to vmdk. `output_name` is the file's name inside `artifacts.output_path`; by default the
    image's stem and the format's suffix. `disk` names one of the disks inside an OVA. `output_checksum`
    reads the result once more for its SHA-256. `boot_test` boots the result, and the job fails if it does
    not come up.
    """

    output_format: ImageFormat = "qcow2"
    compress: bool = True
    compression_type: Literal["zlib", "zstd"] = "zlib"
    subformat: Literal["monolithicSparse", "streamOptimized"] | None = None
    output_name: OutputName | None = None
    output_checksum: bool = False
    boot_test: bool = False


class RepairParameters(ImageParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all operations that change a guest take; the source itself is never changed.

    `disk` names one of the disks inside an OVA. `output_format`, `compress` and `output_name` say how the
    result is written, and `output_checksum` reads it once more for its SHA-256. `root` names the device of
    the operating system to work on, where the disk holds several. `boot_test` boots the result, and the job
    fails if it does not come up.
    """

    output_format: ImageFormat = "qcow2"
    compress: bool = False
    output_name: OutputName | None = None
    root: DeviceName | None = None
    output_checksum: bool = False
    boot_test: bool = False


class FsRepairParameters(RepairParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which filesystems: all of them, unless some are named by their devices.

    `zero_log` lets a dirty XFS log that cannot be replayed be thrown away (`xfs_repair -L`), and what was
    only in it with it.
    """

    devices: tuple[DeviceName, ...] = ()
    zero_log: bool = False


class LvmRepairParameters(RepairParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`rename_duplicates` gives all but one of several volume groups of one name a name of its own."""

    rename_duplicates: bool = False


class InitramfsParameters(RepairParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`drivers` are the kernel modules that every initramfs has to hold."""

    drivers: tuple[Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,64}$(?!\n)")], ...] = (
        "virtio_blk",
        "virtio_scsi",
        "virtio_net",
        "virtio_pci",
    )


class BootRepairParameters(RepairParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`firmware` is what the guest is going to be booted by; `auto` keeps what its disk is made for."""

    firmware: Firmware = "auto"


class SelinuxParameters(RepairParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`method`: `relabel` writes labels now, `autorelabel` at the next boot, `auto` what can be done."""

    method: Literal["auto", "relabel", "autorelabel"] = "auto"


class OfflineFixParameters(RepairParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`requested_actions` selects fixes. `drivers` are the modules that every initramfs has to hold."""

    drivers: tuple[Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,64}$(?!\n)")], ...] = (
        "virtio_blk",
        "virtio_scsi",
        "virtio_net",
        "virtio_pci",
    )


class BootTestParameters(ImageParameters, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The virtual machine that boots the disk. Memory is in MiB; the time limit in seconds.

    `disk` names one of the disks inside an OVA.
    """

    firmware: Firmware = "auto"
    bus: DiskBus = "virtio-blk"
    memory_mb: Annotated[int, Meta(ge=256, le=16384)] = 1024
    boot_seconds: Annotated[int, Meta(ge=10, le=3600)] = 600


class _Written(Protocol):
    @property
    def output_format(self) -> ImageFormat: ...
    @property
    def output_name(self) -> str | None: ...


def converted_path(spec: JobSpec, parameters: _Written) -> str:
    """Where the resulting image goes: the name asked for, or the source's with the format's as suffix."""
    stem = PurePosixPath(spec.image.path).stem
    name = parameters.output_name or f"{stem}.{parameters.output_format}"
    return posixpath.join(spec.artifacts.output_path, name)


def _converted(spec: JobSpec, parameters: _Written) -> tuple[str, ...]:
    return (converted_path(spec, parameters),) if spec.artifacts.store_fixed_image else ()


INSPECT = OperationDeclaration(
    name="inspect",
    summary="Report what an image is, what is inside it, and what would keep it from booting on KVM.",
    parameters=InspectParameters,
    phases=(
        Phase("probe", 1),
        Phase("check", 6),
        Phase("partitions", 2),
        Phase("guest", 20),
        Phase("report", 1),
    ),
    runner="workers.operations.inspect:Inspect",
    needs=QEMU_IMG,
    prefers=GUEST,
    actions=("info", "check", "partitions", "guest", "nbd_attach"),
)

CONVERT = OperationDeclaration(
    name="convert",
    summary="Write the image's content in another format, and prove that it is the same content.",
    parameters=ConvertParameters,
    phases=(
        Phase("probe", 2),
        Phase("convert", 66),
        Phase("check", 4),
        Phase("compare", 26),
        Phase("boot", 40, only_if="boot_test"),
        Phase("publish", 2),
    ),
    runner="workers.operations.convert:Convert",
    needs=QEMU_IMG,
    needs_if={"boot_test": QEMU_SYSTEM},
    actions=("convert", "check", "compare"),
    required_actions=frozenset({"convert"}),
    writes=_converted,
)

_REPAIR_PHASES = (
    Phase("probe", 2),
    Phase("open", 15),
    Phase("survey", 8),
    Phase("repair", 40),
    Phase("write", 25),
    Phase("verify", 8),
    Phase("boot", 40, only_if="boot_test"),
    Phase("publish", 2),
)


def _repair(
    name: str, summary: str, parameters: type[RepairParameters], actions: tuple[str, ...]
) -> OperationDeclaration:
    return OperationDeclaration(
        name=name,
        summary=summary,
        parameters=parameters,
        phases=_REPAIR_PHASES,
        runner="workers.operations.repair:Repair",
        needs=GUEST,
        needs_if={"boot_test": QEMU_SYSTEM},
        actions=(*actions, *ACCESS_ACTIONS),
        writes=_converted,
    )


FS_REPAIR = _repair(
    "fs_repair",
    "Check every filesystem and repair those that are damaged, lost superblocks included.",
    FsRepairParameters,
    ("fsck",),
)
LVM_REPAIR = _repair(
    "lvm_repair",
    "Bring lost LVM labels and metadata back from what is found on the disk, and prove the activation.",
    LvmRepairParameters,
    ("pv_restore", "vg_check", "duplicate_vgs", "devices_file", "activate"),
)
BOOT_REPAIR = _repair(
    "boot_repair",
    "Install the boot loader again and write its configuration anew, for BIOS and UEFI.",
    BootRepairParameters,
    ("root_argument", "boot_loader", "boot_config"),
)
INITRAMFS_REGENERATE = _repair(
    "initramfs_regenerate",
    "Build the initramfs of every kernel again, with the drivers of virtual disks and networks in it.",
    InitramfsParameters,
    ("initramfs_regenerate",),
)
SELINUX_PREP = _repair(
    "selinux_prep",
    "Give every file its SELinux label by the guest's own policy.",
    SelinuxParameters,
    ("selinux_relabel",),
)
OFFLINE_FIX = msgspec.structs.replace(
    _repair(
        "offline_fix",
        "Make the guest boot on KVM: devices, drivers, boot loader, network names, console, agents, labels.",
        OfflineFixParameters,
        (
            "fsck",
            "fstab",
            "vmware_tools",
            "network_names",
            "cloud_init",
            "devices_file",
            "console",
            "root_argument",
            "initramfs_regenerate",
            "boot_loader",
            "boot_config",
            "selinux_relabel",
            "windows_drivers",
        ),
    ),
    needs=QEMU_IMG,
    prefers=GUEST,
)

BOOT_TEST = OperationDeclaration(
    name="boot_test",
    summary="Boot the disk in a virtual machine without a network, and watch it come up.",
    parameters=BootTestParameters,
    phases=(Phase("probe", 2), Phase("boot", 96), Phase("report", 2)),
    runner="workers.operations.boot_test:BootTest",
    needs=QEMU_IMG | QEMU_SYSTEM,
    actions=("boot",),
)

BUILT_IN = (
    INSPECT,
    CONVERT,
    OFFLINE_FIX,
    BOOT_REPAIR,
    SELINUX_PREP,
    LVM_REPAIR,
    FS_REPAIR,
    INITRAMFS_REGENERATE,
    BOOT_TEST,
)
