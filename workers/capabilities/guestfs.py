"""Probes libguestfs: its binding loads, and its appliance has all the parts that it is built from.

Starting the appliance takes many seconds, so a worker does not do that when it starts; the evidence
says that it was not done.
"""

import os
import platform
from pathlib import Path
from typing import Final

from h2kbus.errors import OperationFailed
from workers.capabilities.probe import Finding, Tools, first_line, proven, refuted
from workers.guest.attach import SYSTEM_PYTHON
from workers.guest.built import RECIPES

_INSTALL: Final = "apt-get install libguestfs-tools python3-guestfs"
_BINDING: Final = "import guestfs; print('libguestfs', *guestfs.GuestFS().version().values())"
_QEMU: Final = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
_KERNELS: Final = ("boot/vmlinuz-*", "lib/modules/*/vmlinuz")


async def probe_guestfs(tools: Tools) -> Finding:
    """The binding loads, supermin and qemu run; the appliance's recipe and a readable kernel are there."""
    qemu = _QEMU.get(platform.machine(), f"qemu-system-{platform.machine()}")
    try:
        said = [first_line(await tools.run([name, "--version"])) for name in ("supermin", qemu)]
        said.insert(0, first_line(await tools.run([SYSTEM_PYTHON, "-I", "-c", _BINDING])))
    except (FileNotFoundError, OperationFailed) as error:
        return refuted("guestfs", str(error), _INSTALL)
    return appliance_parts("; ".join(said), Path("/"))


def appliance_parts(versions: str, root: Path) -> Finding:
    """Look for the recipe of the appliance and for a kernel below `root`."""
    if not _found(RECIPES, root):
        return refuted("guestfs", f"{versions}; no recipe for the appliance (supermin.d)", _INSTALL)
    kernels = _found(_KERNELS, root)
    if not kernels:
        return refuted(
            "guestfs", f"{versions}; no kernel for the appliance", "apt-get install linux-image-amd64"
        )
    readable = [each for each in kernels if os.access(each, os.R_OK)]
    if not readable:
        return refuted("guestfs", f"{versions}; {kernels[0]} is not readable", f"chmod 0644 {kernels[0]}")
    return proven("guestfs", f"{versions}; kernel {readable[-1]}; the appliance was not started")


def _found(patterns: tuple[str, ...], root: Path) -> list[Path]:
    return sorted(each for pattern in patterns for each in root.glob(pattern))
