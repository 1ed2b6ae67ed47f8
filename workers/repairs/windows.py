"""Windows guests: virt-v2v puts the drivers of virtio disks and networks in, and registers them."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.attach import SYSTEM_PYTHON, ApplianceNeeds, appliance_needs
from workers.guest.rescue import Rescue
from workers.joblog import printable
from workers.links import holding
from workers.qemu import Disk
from workers.sandbox import Allowance
from workers.workplace import Workplace

PROGRAM: Final = "virt-v2v-in-place"
CAPABILITY: Final = "virtio-win"
ACTION: Final = "windows_drivers"
SECONDS: Final = 7200.0
_DRIVERS: Final = ("Windows", "System32", "drivers")
_DISK_DRIVERS: Final = frozenset({"viostor.sys", "vioscsi.sys"})
_FROM_WORKER: Final = ("VIRTIO_WIN", "VIRT_TOOLS_DATA_DIR")
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
    needs = await appliance_needs(place, accelerated=accelerated)
    with holding(place.scratch, SYSTEM_PYTHON) as hold:
        output = await place.tools.run(
            [*hold, *program],
            accept=(0, 1, 2),
            on_output=hear,
            timeout=SECONDS,
            environment=_environment(place, needs, accelerated=accelerated),
            allowance=_allowance(needs),
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


def _environment(place: Workplace, needs: ApplianceNeeds, *, accelerated: bool) -> dict[str, str]:
    settings = {} if accelerated else {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
    return {
        **needs.environment,
        **_from_worker(),
        **settings,
        "LIBGUESTFS_BACKEND": "direct",
        "VIRT_V2V_TMPDIR": place.tools.seen_scratch,
    }


def _allowance(needs: ApplianceNeeds) -> Allowance:
    """The drivers are read where the worker's operator put them."""
    drivers = (Path(each) for each in _from_worker().values())
    return msgspec.structs.replace(needs.allowance, readable=(*needs.allowance.readable, *drivers))


def _from_worker() -> dict[str, str]:
    return {name: os.environ[name] for name in _FROM_WORKER if name in os.environ}
