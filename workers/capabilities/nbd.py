"""Proves that a disk image could be attached as a network block device."""

import os
import re
from pathlib import Path
from typing import Final

from workers.capabilities.probe import Finding, Tools, proven, refuted, runs

_LOAD: Final = "modprobe nbd max_part=16"
_DEVICE: Final = re.compile(r"nbd[0-9]+")


async def probe_nbd(tools: Tools) -> Finding:
    """qemu-nbd runs, and a device that nobody holds opens for writing.

    Nothing is connected: between looking and connecting, the device could become another job's.
    """
    program = await runs(tools, "nbd", ["qemu-nbd", "--version"], "apt-get install qemu-utils")
    if not program.proven:
        return program
    return open_free_device(program.evidence, Path("/dev"), Path("/sys/block"))


def open_free_device(version: str, devices: Path, blocks: Path) -> Finding:
    """Open the first device node in `devices` that sysfs, at `blocks`, shows no holder for."""
    names = sorted(each.name for each in blocks.glob("nbd*") if _DEVICE.fullmatch(each.name))
    if not names:
        return refuted("nbd", f"{version}; the kernel has no nbd devices", _LOAD)
    free = [name for name in names if not (blocks / name / "pid").exists()]
    if not free:
        words = f"{version}; all {len(names)} devices are held by others"
        return refuted(
            "nbd", words, "when none is in use: modprobe -r nbd && modprobe nbd max_part=16 nbds_max=64"
        )
    device = devices / free[0]
    try:
        os.close(os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        words = f"{version}; {device} does not open: {error.strerror}"
        return refuted("nbd", words, "run the worker as root, with the /dev/nbd* devices allowed to it")
    return proven("nbd", f"{version}; {device} is free and opens; no image was attached")
