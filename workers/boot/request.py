"""What a boot test is asked, and what it answers."""

from pathlib import Path
from typing import Final, Literal

import msgspec

from subjects.builtin import BootTestParameters, DiskBus, Firmware
from workers.qemu import Disk

KVM: Final = "kvm"
"""The capability without which the machine's processor is emulated."""


class BootRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that is to boot a disk, which is never written to.

    Memory is in MiB. `boot_seconds` is how long the guest may take. `accelerated` must be true only
    where KVM was proven.
    """

    disk: Disk
    firmware: Firmware = "auto"
    bus: DiskBus = "virtio-blk"
    memory_mb: int = 1024
    boot_seconds: int = 600
    accelerated: bool = False

    @classmethod
    def of(cls, disk: Disk, wanted: BootTestParameters, capabilities: frozenset[str]) -> "BootRequest":
        """What a job's parameters ask for, on a worker that was seen to do these things."""
        return cls(
            disk=disk,
            firmware=wanted.firmware,
            bus=wanted.bus,
            memory_mb=wanted.memory_mb,
            boot_seconds=wanted.boot_seconds,
            accelerated=KVM in capabilities,
        )


class BootVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """How far the guest came. `detail` is the line that decided, `tail` the console's last lines.

    All of that is fit to be shown. `console` and `screenshot` are files in the scratch directory.
    """

    boots: bool
    stage: str
    detail: str
    seconds: float
    firmware: Literal["bios", "uefi"]
    accelerator: Literal["kvm", "tcg"]
    console: Path
    screenshot: Path | None
    qemu_version: str
    tail: tuple[str, ...] = ()
