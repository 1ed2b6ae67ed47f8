"""Proves KVM by running code in it, in a process of its own, which a deadline can end."""

import errno
import platform
import sys
from pathlib import Path
from typing import Final

from h2kbus.errors import OperationFailed
from workers.capabilities.probe import Finding, Tools, first_line, proven, refuted

_GUEST: Final = str(Path(__file__).with_name("kvm_guest.py"))
_HOST: Final = "run the worker on bare metal, or where nested virtualisation is done by the processor"
_MENDS: Final = {
    errno.ENOENT: "modprobe kvm_intel || modprobe kvm_amd",
    errno.ENXIO: "modprobe kvm_intel || modprobe kvm_amd",
    errno.ENODEV: "modprobe kvm_intel || modprobe kvm_amd",
    errno.EACCES: "usermod -aG kvm $(id -un)",
    errno.EPERM: "give the worker's container the device: --device /dev/kvm",
}
_FAILED: Final = 64
"""The status of a guest that failed; an errno on top of it tells which call was refused."""


async def probe_kvm(tools: Tools) -> Finding:
    """A virtual processor runs 64-bit code with paging and vector registers, as any guest's kernel does."""
    if platform.machine() != "x86_64":
        return refuted("kvm", f"only probed on x86_64, and this is {platform.machine()}")
    try:
        output = await tools.run([sys.executable, "-I", "-S", _GUEST], accept=(0, *range(_FAILED, 256)))
    except (FileNotFoundError, OperationFailed) as error:
        return refuted("kvm", str(error), _HOST)
    if output.status:
        return refuted("kvm", first_line(output), _MENDS.get(output.status - _FAILED, _HOST))
    return proven("kvm", first_line(output))
