"""Which firmware boots a disk, and where the host has the one for UEFI."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import Firmware
from workers.partitions import PartitionTable, read_table
from workers.qemu import Disk, QemuImg
from workers.scratch import copy

_SECTOR: Final = 512
_BOOT_CODE_BYTES: Final = 440
_VARIABLES: Final = Path("uefi-variables.fd")
_EFI_SYSTEM: Final = "EFI system"
_BIOS_BOOT: Final = "BIOS boot"


class Ovmf(msgspec.Struct, frozen=True):
    """A build of OVMF without Secure Boot, which no unsigned guest passes: its code and its variables."""

    code: Path
    variables: Path


OVMF: Final = tuple(
    Ovmf(Path("/usr/share", code), Path("/usr/share", variables))
    for code, variables in (
        ("OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"),  # Debian, Ubuntu
        ("OVMF/OVMF_CODE.fd", "OVMF/OVMF_VARS.fd"),  # older Debian and Ubuntu
        ("edk2/ovmf/OVMF_CODE.fd", "edk2/ovmf/OVMF_VARS.fd"),  # Fedora, RHEL
        ("edk2/x64/OVMF_CODE.4m.fd", "edk2/x64/OVMF_VARS.4m.fd"),  # Arch
        ("edk2-ovmf/x64/OVMF_CODE.fd", "edk2-ovmf/x64/OVMF_VARS.fd"),  # older Arch
        ("qemu/ovmf-x86_64-4m-code.bin", "qemu/ovmf-x86_64-4m-vars.bin"),  # openSUSE
        ("qemu/ovmf-x86_64-code.bin", "qemu/ovmf-x86_64-vars.bin"),  # older openSUSE
    )
)


async def choose_firmware(wanted: Firmware, qemu: QemuImg, disk: Disk, size: int) -> Literal["bios", "uefi"]:
    """The firmware that was asked for, or the one that a disk of `size` bytes is made for."""
    if wanted != "auto":
        return wanted

    async def read(offset: int, length: int) -> bytes:
        return await qemu.read(disk, offset, length) if offset < size else b""

    table = await read_table(read, size)
    return firmware_of(table, await read(0, _SECTOR))


def firmware_of(table: PartitionTable, first_sector: bytes) -> Literal["bios", "uefi"]:
    """UEFI for a disk with an EFI system partition on which a BIOS finds nothing to start.

    Windows writes boot code even where a GPT follows; it leads on only to a partition marked for it.
    """
    kinds = {each.type for each in table.partitions}
    leads_on = table.scheme != "gpt" or any(each.bootable for each in table.partitions)
    for_bios = _BIOS_BOOT in kinds or (leads_on and any(first_sector[:_BOOT_CODE_BYTES]))
    return "uefi" if _EFI_SYSTEM in kinds and not for_bios else "bios"


def find_ovmf(places: Iterable[Ovmf] = OVMF) -> Ovmf | None:
    """The first build that is installed."""
    return next((each for each in places if each.code.is_file() and each.variables.is_file()), None)


async def prepare_ovmf(scratch: Path, places: Iterable[Ovmf] = OVMF) -> Ovmf:
    """The installed firmware, with a copy of its variables in `scratch` that the guest may write to.

    The copy is named as tools see it, which work there.

    Raises CAPABILITY_MISSING where none is installed.
    """
    found = find_ovmf(places)
    if found is None:
        message = "UEFI needs the firmware OVMF, which is not installed: apt-get install ovmf"
        raise OperationFailed(ErrorCode.CAPABILITY_MISSING, message, package="ovmf")
    await anyio.to_thread.run_sync(copy, found.variables, scratch / _VARIABLES)
    return Ovmf(found.code, _VARIABLES)
