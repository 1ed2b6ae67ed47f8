"""What every parameter of the built-in operations means, with an example; see `subjects.meanings`."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from subjects.builtin import (
    BootRepairParameters,
    BootTestParameters,
    ConvertParameters,
    FsRepairParameters,
    ImageParameters,
    InitramfsParameters,
    LvmRepairParameters,
    OfflineFixParameters,
    RepairParameters,
    SelinuxParameters,
)

Meaning = tuple[str, Any] | tuple[str]
"""A sentence, and an example as JSON has it. An object of the contract has none of its own."""

_DRIVERS: Final = ("Kernel modules that every initramfs has to hold.", ["virtio_blk", "virtio_net"])
_BOOTED_BY: Final = "What the guest is booted by; `auto`: what its disk is made for."

OF_PARAMETERS: Final[Mapping[type[msgspec.Struct], Mapping[str, Meaning]]] = {
    ImageParameters: {
        "disk": ("One of the disks inside an OVA; needed if there are several.", "mail2-disk1.vmdk"),
        "allow_backing_chain": ("Let a qcow2 build on other files below the same root.", False),
        "allow_snapshots": ("Let a qcow2 hold snapshots, which are not carried over.", False),
    },
    ConvertParameters: {
        "output_format": ("Format of the result.", "qcow2"),
        "compress": ("Compress the result, where it is a qcow2.", True),
        "compression_type": ("What a qcow2 is compressed by.", "zlib"),
        "subformat": ("Kind of vmdk; a streamOptimized one is always compressed.", "streamOptimized"),
        "output_name": ("Name of the result; else the image's, with the format as suffix.", "mail2.qcow2"),
        "output_checksum": ("Read the result once more for its SHA-256, in the manifest and report.", False),
        "boot_test": ("Boot the result; the job fails if it does not come up.", False),
    },
    RepairParameters: {
        "output_format": ("Format of the result.", "qcow2"),
        "compress": ("Compress the result, where it is a qcow2.", False),
        "output_name": ("Name of the result; else the image's, with the format as suffix.", "mail2.qcow2"),
        "output_checksum": ("Read the result once more for its SHA-256, in the manifest and report.", False),
        "root": ("Device of the system to work on, where the disk holds several.", "/dev/vda2"),
        "boot_test": ("Boot the result; the job fails if it does not come up.", False),
    },
    FsRepairParameters: {
        "devices": ("Filesystems to repair, by their devices; none: all of them.", ["/dev/vda2"]),
        "zero_log": ("Throw away a dirty XFS log that cannot be replayed.", False),
    },
    LvmRepairParameters: {"rename_duplicates": ("Rename all but one of several groups of one name.", False)},
    InitramfsParameters: {"drivers": _DRIVERS},
    OfflineFixParameters: {"drivers": _DRIVERS},
    BootRepairParameters: {"firmware": (_BOOTED_BY, "auto")},
    SelinuxParameters: {
        "method": ("`relabel`: now. `autorelabel`: at the next boot. `auto`: what can be done.", "auto")
    },
    BootTestParameters: {
        "firmware": (_BOOTED_BY, "auto"),
        "bus": ("How the disk is attached.", "virtio-blk"),
        "memory_mb": ("Memory of the virtual machine, in MiB.", 1024),
        "boot_seconds": ("How long it may take to come up.", 600),
    },
}
