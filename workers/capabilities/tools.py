"""Probes that run a tool, or try what the tool would have to do."""

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from workers.capabilities.probe import Finding, Tools, proven, refuted, runs

_NBD_DEVICE: Final = Path("/dev/nbd0")
_SELINUX: Final = ("setfiles", "matchpathcon")


async def probe_qemu_img(tools: Tools) -> Finding:
    """qemu-img runs."""
    return await runs(tools, "qemu-img", ["qemu-img", "--version"], "apt-get install qemu-utils")


async def probe_lvm(tools: Tools) -> Finding:
    """The LVM tools run and reach the device mapper."""
    return await runs(tools, "lvm", ["lvm", "version"], "apt-get install lvm2; modprobe dm-mod")


async def probe_nbd(tools: Tools) -> Finding:
    """qemu-nbd runs and an NBD device opens. No device is connected: another job may hold it."""
    program = await runs(tools, "nbd", ["qemu-nbd", "--version"], "apt-get install qemu-utils")
    if not program.proven:
        return program
    mend = "modprobe nbd max_part=16"
    try:
        if not stat.S_ISBLK(_NBD_DEVICE.stat().st_mode):
            return refuted("nbd", f"{_NBD_DEVICE} is no block device", mend)
        os.close(os.open(_NBD_DEVICE, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return refuted("nbd", f"{_NBD_DEVICE}: {error.strerror}", mend)
    return proven("nbd", f"{program.evidence}; {_NBD_DEVICE} opens")


async def probe_mount(tools: Tools) -> Finding:
    """A filesystem is mounted, in a mount namespace of its own: being root does not suffice everywhere."""
    unshare = tools.find("unshare")
    if unshare is None:
        return refuted("mount", "unshare is not installed", "apt-get install util-linux")
    with tempfile.TemporaryDirectory(prefix="h2kbus-probe-") as place:
        argv = [unshare, "--mount", "mount", "-t", "tmpfs", "-o", "size=64k", "h2kbus-probe", place]
        worked, words = await tools.first_line(argv)
    if worked:
        return proven("mount", "mounted a tmpfs in a mount namespace")
    return refuted("mount", words, "run the worker with CAP_SYS_ADMIN, or as root on a host")


async def probe_selinux_tools(tools: Tools) -> Finding:
    """The tools that write SELinux labels are there. They need no SELinux in this kernel."""
    missing = [name for name in _SELINUX if tools.find(name) is None]
    if missing:
        words = f"not installed: {', '.join(missing)}"
        return refuted("selinux-tools", words, "apt-get install policycoreutils selinux-utils")
    return await runs(tools, "selinux-tools", ["matchpathcon", "-V", "/"], "apt-get install selinux-utils")
