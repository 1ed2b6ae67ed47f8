"""The initramfs of every kernel, built again by the guest's own tool with the drivers that KVM needs."""

import re
from typing import Final

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.kernels import Kernel
from workers.repairs.case import Case

DEBIAN_MODULES: Final = "/etc/initramfs-tools/modules"
DRACUT_DROP_IN: Final = "/etc/dracut.conf.d/h2kbus-virtio.conf"
SUSE_KERNEL: Final = "/etc/sysconfig/kernel"
_SUSE_MODULES: Final = re.compile(r'^INITRD_MODULES="(?P<names>[^"]*)"', re.MULTILINE)


async def initramfs_regenerate(case: Case) -> None:
    """Build those that lack a driver. Raises GUEST_UNSUPPORTED, GUEST_DISK_FULL, or REPAIR_FAILED."""
    drivers: tuple[str, ...] = case.parameters.drivers
    kernels = [each for each in await case.kernels(drivers) if each.has_modules]
    lacking = [each for each in kernels if _must_be_built(each, drivers)]
    if kernels and not lacking:
        versions = ", ".join(each.version for each in kernels)
        return case.notes.add(
            "initramfs_regenerate", "not needed", f"{', '.join(drivers)} are in: {versions}"
        )
    if not kernels:
        raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, "no kernel of the guest has its modules installed")
    tool = await _ask_for_drivers(case, drivers)
    for each in lacking:
        await _build(case, tool, each)
    await _prove(case, drivers, [each.version for each in lacking])
    built = ", ".join(f"{each.version} (had no {', '.join(_absent(each, drivers))})" for each in lacking)
    return case.notes.add("initramfs_regenerate", "applied", f"{tool}: {built}; their modules were listed")


def _must_be_built(kernel: Kernel, drivers: tuple[str, ...]) -> bool:
    return kernel.initramfs is None or kernel.drivers is None or bool(kernel.lacks(drivers))


def _absent(kernel: Kernel, drivers: tuple[str, ...]) -> list[str]:
    if kernel.initramfs is None:
        return ["initramfs"]
    return kernel.lacks(drivers) or ["readable list of modules"]


async def _ask_for_drivers(case: Case, drivers: tuple[str, ...]) -> str:
    """Have the guest's own configuration ask for the drivers, so that its next kernel has them too."""
    rescue = case.rescue
    if await rescue.has_program("update-initramfs"):
        text = await rescue.read_text(DEBIAN_MODULES) or ""
        there = {line.split()[0] for line in text.splitlines() if line.strip()}
        missing = [each for each in drivers if each not in there]
        if missing:
            start = text if not text or text.endswith("\n") else f"{text}\n"
            await rescue.write_text(DEBIAN_MODULES, start + "".join(f"{each}\n" for each in missing))
        return "update-initramfs"
    if await rescue.has_program("dracut"):
        await rescue.write_text(DRACUT_DROP_IN, f'add_drivers+=" {" ".join(drivers)} "\n')
        return "dracut"
    if await rescue.has_program("mkinitrd"):
        await _ask_suse(case, drivers)
        return "mkinitrd"
    message = f"{case.system.root.release.name} has neither update-initramfs, dracut nor mkinitrd"
    raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, message)


async def _ask_suse(case: Case, drivers: tuple[str, ...]) -> None:
    text = await case.rescue.read_text(SUSE_KERNEL) or ""
    match = _SUSE_MODULES.search(text)
    names = dict.fromkeys([*(match["names"].split() if match else []), *drivers])
    line = f'INITRD_MODULES="{" ".join(names)}"'
    after = _SUSE_MODULES.sub(lambda _: line, text) if match else f"{text}{line}\n"
    await case.rescue.write_text(SUSE_KERNEL, after)


async def _build(case: Case, tool: str, kernel: Kernel) -> None:
    version = kernel.version
    target = kernel.initramfs or f"/boot/initramfs-{version}.img"
    if tool == "update-initramfs":
        await case.rescue.inside(tool, "-u" if kernel.initramfs else "-c", "-k", version)
    elif tool == "dracut":
        await case.rescue.inside(tool, "--force", "--kver", version, target)
    else:
        await case.rescue.inside(tool, "-k", kernel.image, "-i", target)


async def _prove(case: Case, drivers: tuple[str, ...], versions: list[str]) -> None:
    """Look into what was built. Raises REPAIR_FAILED if a driver is still missing."""
    for kernel in await case.kernels(drivers):
        if kernel.version in versions and (kernel.initramfs is None or kernel.lacks(drivers)):
            words = ", ".join(_absent(kernel, drivers))
            message = f"the new initramfs of {kernel.version} still has no {words}"
            raise OperationFailed(ErrorCode.REPAIR_FAILED, message)
