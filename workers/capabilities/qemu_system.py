"""Proves that a disk could be booted: the emulator starts a machine, as confined as a boot test's."""

from typing import Final

from h2kbus.errors import OperationFailed
from workers.boot.command import CONFINED, PROGRAM, TCG
from workers.boot.firmware import find_ovmf
from workers.boot.qmp import Qmp
from workers.capabilities.probe import Finding, Tools, proven, refuted

_INSTALL: Final = "apt-get install qemu-system-x86 ovmf"


async def probe_qemu_system(tools: Tools) -> Finding:
    """A paused machine without a disk starts under TCG, says that it is there, and ends when told to."""
    try:
        async with tools.converse(
            [PROGRAM, *CONFINED, *TCG, "-machine", "pc", "-S", "-qmp", "stdio"]
        ) as talk:
            qmp = Qmp(talk)
            version = await qmp.greet()
            await qmp.execute("query-status")
            await qmp.quit()
    except (FileNotFoundError, OperationFailed) as error:
        return refuted("qemu-system", str(error), _INSTALL)
    uefi = "OVMF for UEFI" if find_ovmf() else "no OVMF, so no UEFI"
    words = f"qemu {version} with {uefi}: a paused machine started; no guest was booted"
    return proven("qemu-system", words)
