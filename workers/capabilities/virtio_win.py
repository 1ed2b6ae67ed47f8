"""Proves that Windows guests can be given drivers: virt-v2v runs, and the drivers are there."""

import os
from pathlib import Path
from typing import Final

from h2kbus.errors import OperationFailed
from workers.capabilities.probe import Finding, Tools, first_line, proven, refuted
from workers.repairs.windows import CAPABILITY, PROGRAM

_INSTALL: Final = (
    "apt-get install virt-v2v nbdkit, and put virtio-win and rhsrvany.exe where virt-v2v(1) says"
)
_DRIVERS: Final = "/usr/share/virtio-win"
_SERVICES: Final = "/usr/share/virt-tools"
_SERVICE_PROGRAMS: Final = ("rhsrvany.exe", "pvvxsvc.exe")


async def probe_virtio_win(tools: Tools) -> Finding:
    """virt-v2v and the server that it reads disks by run; the places that it looks in hold what it needs."""
    try:
        said = [first_line(await tools.run([name, "--version"])) for name in (PROGRAM, "nbdkit")]
    except (FileNotFoundError, OperationFailed) as error:
        return refuted(CAPABILITY, str(error), _INSTALL)
    drivers = Path(os.environ.get("VIRTIO_WIN", _DRIVERS))
    services = Path(os.environ.get("VIRT_TOOLS_DATA_DIR", _SERVICES))
    return driver_parts("; ".join(said), drivers, services)


def driver_parts(versions: str, drivers: Path, services: Path) -> Finding:
    """Look for a disk driver below `drivers`, which may also be an ISO image, and for a service program."""
    found = drivers.is_file() or any(drivers.rglob("viostor.inf"))
    if not found:
        return refuted(CAPABILITY, f"{versions}; no virtio disk driver in {drivers}", _INSTALL)
    if not any((services / each).is_file() for each in _SERVICE_PROGRAMS):
        return refuted(CAPABILITY, f"{versions}; no {_SERVICE_PROGRAMS[0]} in {services}", _INSTALL)
    return proven(CAPABILITY, f"{versions}; drivers in {drivers}; no guest was converted")
