"""The command line of the machine that boots a disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from workers.boot.firmware import Ovmf
from workers.boot.request import BootRequest
from workers.qemu import Disk

PROGRAM: Final = "qemu-system-x86_64"

CONFINED: Final = (
    *("-no-user-config", "-nodefaults", "-nic", "none", "-display", "none"),
    *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
)
"""Nothing but what is named, no network, and no way to start programs: the guest is hostile."""

TCG: Final = ("-accel", "tcg,thread=multi")
# Newer distributions need the vector instructions of `max`. Page tables of five levels only cost time.
_TCG_CPU: Final = "max,la57=off"

_MACHINES: Final = {
    # Without "graphics", SeaBIOS repeats on the serial port what boot loaders show on the screen.
    "bios": "pc,graphics=off",
    "uefi": "q35",
}
_DEVICES: Final = {
    "virtio-blk": ("virtio-blk-pci,drive=disk,bootindex=0",),
    "virtio-scsi": ("virtio-scsi-pci,id=scsi", "scsi-hd,bus=scsi.0,drive=disk,bootindex=0"),
    "ide": ("ide-hd,bus=ide.0,drive=disk,bootindex=0",),
}


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine is given: an overlay to write to, firmware for UEFI, a descriptor for its console."""

    overlay: str
    ovmf: Ovmf | None
    console: int

    @property
    def firmware(self) -> Literal["bios", "uefi"]:
        return "uefi" if self.ovmf else "bios"


def command_line(request: BootRequest, parts: Parts) -> list[str]:
    """A paused machine. When the guest resets or powers off, it stays, so that its screen can be seen."""
    return [
        *(PROGRAM, *CONFINED, "-qmp", "stdio", "-S", "-no-reboot", "-no-shutdown"),
        *("-machine", _MACHINES[parts.firmware], *_processor(request)),
        *("-m", str(request.memory_mb), "-vga", "std"),
        *("-chardev", f"file,id=console,path=/dev/fd/{parts.console}", "-serial", "chardev:console"),
        *("-object", "rng-builtin,id=random", "-device", "virtio-rng-pci,rng=random"),
        *_pflash(parts.ovmf),
        *_disk(request.disk, parts.overlay),
        *(word for device in _DEVICES[request.bus] for word in ("-device", device)),
    ]


def _processor(request: BootRequest) -> Sequence[str]:
    if request.accelerated:
        return ("-accel", "kvm", "-cpu", "host", "-smp", "2")
    return (*TCG, "-cpu", _TCG_CPU, "-smp", "2")


def _pflash(ovmf: Ovmf | None) -> list[str]:
    if ovmf is None:
        return []
    drive = "if=pflash,format=raw"
    return [
        *("-drive", f"{drive},unit=0,readonly=on,file={_escaped(ovmf.code)}"),
        *("-drive", f"{drive},unit=1,file={_escaped(ovmf.variables)}"),
    ]


def _disk(disk: Disk, overlay: str) -> list[str]:
    """The disk, opened to be read only, below an overlay that takes every write.

    The format is forced, and no file is opened that is not named here. Nobody reads the overlay after the
    test, so it need not reach stable storage.
    """
    base: dict[str, Any] = {**disk.node, "node-name": "source", "read-only": True}
    unsafe = {"no-flush": True}
    top = {
        "driver": "qcow2",
        "node-name": "disk",
        "cache": unsafe,
        "backing": "source",
        "file": {"driver": "file", "filename": overlay, "cache": unsafe},
    }
    return [word for node in (base, top) for word in ("-blockdev", msgspec.json.encode(node).decode())]


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")
