"""A guest's kernels, and the drivers that each finds before its root is mounted."""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.initramfs import MAX_BYTES, module_name, modules_in
from workers.guest.rescue import Rescue
from workers.process import ToolRunner

BOOT_DRIVERS: Final = ("virtio_pci", "virtio_blk")
"""Without these, a kernel does not see a virtio disk: the bus and the block device on it."""

_IMAGE: Final = re.compile(r"(?:vmlinuz|vmlinux|Image|kernel)-(?P<version>[A-Za-z0-9][\w.+~-]*)")
_INITRAMFS: Final = ("initrd.img-{version}", "initramfs-{version}.img", "initrd-{version}")
_DIGITS: Final = frozenset("0123456789")
_COPY: Final = "initramfs"
_RESCUE: Final = "-rescue-"
_MODULES_AT: Final = ("/lib/modules", "/usr/lib/modules")


class Kernel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An installed kernel.

    `drivers` says of each driver that was asked for whether it is there at boot, in the initramfs or in
    the kernel itself; None if the initramfs could not be read.
    """

    version: str
    image: str
    initramfs: str | None = None
    has_modules: bool = True
    drivers: dict[str, bool] | None = None

    def lacks(self, drivers: Sequence[str]) -> list[str]:
        """Those of the drivers that it was looked for in vain."""
        return [each for each in drivers if self.drivers is not None and not self.drivers.get(each)]


async def read_kernels(rescue: Rescue, tools: ToolRunner, drivers: Sequence[str]) -> list[Kernel]:
    """The kernels in /boot, the newest last, each with what it holds of `drivers`.

    Raises GUEST_UNSUPPORTED for an initramfs of more bytes than any real one.
    """
    names = await rescue.names("/boot")
    found = []
    for name in names:
        match = _IMAGE.fullmatch(name)
        if match and _RESCUE not in name:
            found.append(await _kernel(rescue, tools, match["version"], name, names, drivers))
    return sorted(found, key=lambda each: version_key(each.version))


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts versions as people do: runs of digits by their value."""
    parts = re.findall(r"[0-9]+|[^0-9]+", version)
    return tuple(_number(each) if each[0] in _DIGITS else (1, 0, each) for each in parts)


def _number(digits: str) -> tuple[int, int, str]:
    plain = digits.lstrip("0")
    return 0, len(plain), plain


async def _kernel(
    rescue: Rescue, tools: ToolRunner, version: str, image: str, names: list[str], drivers: Sequence[str]
) -> Kernel:
    wanted = [pattern.format(version=version) for pattern in _INITRAMFS]
    initramfs = next((each for each in wanted if each in names), None)
    modules = await _modules_directory(rescue, version)
    built_in = await _built_in(rescue, modules) if modules else frozenset()
    inside: frozenset[str] | None = frozenset()
    if initramfs:
        await _copy(rescue, f"/boot/{initramfs}")
        inside = await modules_in(tools.scratch / _COPY, tools)
    return Kernel(
        version=version,
        image=f"/boot/{image}",
        initramfs=f"/boot/{initramfs}" if initramfs else None,
        has_modules=modules is not None,
        drivers=None if inside is None else {each: each in inside | built_in for each in drivers},
    )


async def _copy(rescue: Rescue, initramfs: str) -> None:
    """Fetch an initramfs, which packed has no more bytes than it may unpack to."""
    size = (await rescue.kind(initramfs)).size
    if size > MAX_BYTES:
        message = f"{initramfs} is of {size} bytes, and no initramfs has more than {MAX_BYTES}"
        raise OperationFailed(ErrorCode.GUEST_UNSUPPORTED, message)
    await rescue.download(initramfs, _COPY)


async def _modules_directory(rescue: Rescue, version: str) -> str | None:
    for base in _MODULES_AT:
        if (await rescue.kind(f"{base}/{version}")).kind == "directory":
            return f"{base}/{version}"
    return None


async def _built_in(rescue: Rescue, modules: str) -> frozenset[str]:
    text = await rescue.read_shown(f"{modules}/modules.builtin") or ""
    return frozenset(name for line in text.splitlines() if (name := module_name(line)))
