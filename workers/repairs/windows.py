"""Windows guests: virt-v2v puts the drivers of virtio disks and networks in, and registers them."""

import os
import re
from collections.abc import Callable
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.attach import SYSTEM_PYTHON
from workers.guest.rescue import Rescue
from workers.joblog import printable
from workers.links import holding
from workers.qemu import Disk
from workers.workplace import Workplace

PROGRAM: Final = "virt-v2v-in-place"
CAPABILITY: Final = "virtio-win"
ACTION: Final = "windows_drivers"
SECONDS: Final = 7200.0
_DRIVERS: Final = ("Windows", "System32", "drivers")
_DISK_DRIVERS: Final = frozenset({"viostor.sys", "vioscsi.sys"})
_FROM_WORKER: Final = ("VIRTIO_WIN", "VIRT_TOOLS_DATA_DIR", "LIBGUESTFS_CACHEDIR")
_STAGE: Final = re.compile(r"^\[\s*\d+\.\d+\]\s+(?P<words>\S.*)$")
_ERROR: Final = re.compile(r"error: (?P<words>.+)")

OnStage = Callable[[str], None]


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """A Windows system: the device of its root, and whether it has a driver for virtio disks."""

    name: str
    root: str
    has_drivers: bool


async def read_windows(rescue: Rescue, found: tuple[dict[str, str], ...]) -> Windows:
    """Look at the one Windows system of a disk. Raises MULTIPLE_OS if there are several."""
    if len(found) > 1:
        names = ", ".join(f"{each['name']} on {each['root']}" for each in found)
        raise OperationFailed(ErrorCode.MULTIPLE_OS, f"the disk holds several Windows systems: {names}")
    name, root = found[0]["name"], found[0]["root"]
    await rescue.run("mount", "-o", "ro", root, rescue.sysroot)
    try:
        return Windows(name=name, root=root, has_drivers=await _has_drivers(rescue))
    finally:
        await rescue.unmount()


def require_capability(capabilities: frozenset[str], system: Windows) -> None:
    """Raise CAPABILITY_MISSING on a worker that has no drivers to put in."""
    if CAPABILITY not in capabilities:
        message = f"the guest is {system.name}, and this worker has no virtio-win drivers ({CAPABILITY})"
        raise OperationFailed(ErrorCode.CAPABILITY_MISSING, message, capability=CAPABILITY)


async def convert_windows(place: Workplace, layer: Disk, *, accelerated: bool, on_stage: OnStage) -> None:
    """Let virt-v2v change the layer. Raises REPAIR_FAILED with its words."""

    def hear(line: str) -> None:
        place.log.line(f"  {printable(line)}")
        if match := _STAGE.match(line):
            on_stage(printable(match["words"])[:200])

    program = [PROGRAM, "-i", "disk", "-if", layer.driver, "--root", "single", layer.file]
    environment = _environment(place, accelerated=accelerated)
    with holding(place.scratch, SYSTEM_PYTHON) as hold:
        output = await place.tools.run(
            [*hold, *program],
            accept=(0, 1, 2),
            on_output=hear,
            timeout=SECONDS,
            environment=environment,
            pass_fds=layer.handed,
        )
    if output.status:
        match = _ERROR.search(output.stderr)
        words = printable(match["words"])[:500] if match else output.last_words
        raise OperationFailed(ErrorCode.REPAIR_FAILED, f"{PROGRAM}: {words}")


async def _has_drivers(rescue: Rescue) -> bool:
    place = ""
    for name in _DRIVERS:
        # Windows does not tell upper from lower case, and the rescue environment does.
        names = {each.lower(): each for each in await rescue.names(place or "/")}
        if name.lower() not in names:
            return False
        place = f"{place}/{names[name.lower()]}"
    return bool(_DISK_DRIVERS.intersection(each.lower() for each in await rescue.names(place)))


def _environment(place: Workplace, *, accelerated: bool) -> dict[str, str]:
    scratch = str(place.scratch)
    given = {name: os.environ[name] for name in _FROM_WORKER if name in os.environ}
    settings = {} if accelerated else {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
    return {
        "LIBGUESTFS_CACHEDIR": "/var/tmp",  # noqa: S108 - libguestfs keeps its appliance there by default
        **given,
        **settings,
        "LIBGUESTFS_BACKEND": "direct",
        "LIBGUESTFS_TMPDIR": scratch,
        "VIRT_V2V_TMPDIR": scratch,
        "TMPDIR": scratch,
    }
