"""Attaches a guest's disk, or a throwaway layer over it, to a rescue environment."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.built import built_appliance
from workers.guest.rescue import Rescue, greeting
from workers.limits import APPLIANCE, METADATA
from workers.qemu import Disk
from workers.sandbox import KVM, Allowance
from workers.workplace import Workplace

GUESTFS: Final = "guestfs"
"""The capability of opening guests. Why it is the only way: docs/decisions/0016."""

READY_SECONDS: Final = 300.0
"""Under emulation an appliance takes a minute to start."""

MEMORY_MB: Final = 1280
SYSTEM_PYTHON: Final = "/usr/bin/python3"
_APPLIANCE: Final = Path(__file__).parent / "appliance.py"


class ApplianceNeeds(msgspec.Struct, frozen=True):
    """What a program that boots libguestfs's appliance is given."""

    environment: dict[str, str]
    allowance: Allowance


@asynccontextmanager
async def open_rescue(
    place: Workplace, disk: Disk, *, read_only: bool, accelerated: bool
) -> AsyncIterator[Rescue]:
    """Attach the disk. Whoever wrote to it calls `Rescue.end` before the context ends.

    Raises TOOL_FAILED when the environment does not come up. At the end, and when cancelled, its
    processes are gone, and what it kept in the scratch directory goes with that.
    """
    settings = {
        "path": str(disk.path),
        "format": disk.driver,
        "read_only": read_only,
        "accelerated": accelerated,
        "memory_mb": MEMORY_MB,
    }
    argv = [SYSTEM_PYTHON, "-I", str(_APPLIANCE), msgspec.json.encode(settings).decode()]
    given = await appliance_needs(place, disk, accelerated=accelerated)
    allowance = msgspec.structs.replace(given.allowance, readable=(*given.allowance.readable, _APPLIANCE))
    async with place.tools.converse(argv, environment=given.environment, allowance=allowance) as conversation:
        hello = await greeting(conversation, READY_SECONDS)
        rescue = Rescue(conversation, place.log, hello)
        place.log.line(f"the disk is attached: {rescue.tool}, {rescue.device}")
        yield rescue


async def appliance_needs(place: Workplace, disk: Disk, *, accelerated: bool) -> ApplianceNeeds:
    """What libguestfs needs to boot its appliance with a disk of the scratch directory.

    It keeps what it makes there too: nothing that a guest touched serves the next one. Raises as
    `built_appliance`.
    """
    appliance = await built_appliance(place.tools)
    scratch = str(place.scratch)
    environment = {
        "LIBGUESTFS_PATH": str(appliance),
        "LIBGUESTFS_CACHEDIR": scratch,
        "LIBGUESTFS_TMPDIR": scratch,
    }
    readable = (appliance, *disk.beside)
    devices = KVM if accelerated else ()
    return ApplianceNeeds(environment, Allowance(limits=APPLIANCE, readable=readable, devices=devices))


@asynccontextmanager
async def overlay(place: Workplace, source: Disk) -> AsyncIterator[Disk]:
    """A throwaway layer over the source: what is written goes there, and the source stays as it is.

    The layer names the source by its path, because the programs that open it are not handed descriptors;
    whoever uses it looks afterwards whether the source is still the file that was checked.
    """
    below = (source.path, *source.beside)
    layer = Disk(path=place.scratch / "layer.qcow2", format="qcow2", beside=below)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", source.driver, "-b", _by_path(source)]
    await place.tools.run([*argv, "--", layer.name], allowance=Allowance(limits=METADATA, readable=below))
    try:
        yield layer
    finally:
        with contextlib.suppress(OSError), anyio.CancelScope(shield=True):
            await anyio.Path(layer.path).unlink()


def _by_path(source: Disk) -> str:
    named = msgspec.structs.replace(source, descriptor=None)
    return f"json:{msgspec.json.encode(named.node).decode()}" if named.window else named.name


def require_guestfs(capabilities: frozenset[str]) -> None:
    """Raise CAPABILITY_MISSING on a worker that opens no guests."""
    if GUESTFS not in capabilities:
        message = "this worker can open no guest: it has no libguestfs"
        raise OperationFailed(ErrorCode.CAPABILITY_MISSING, message, capability=GUESTFS)
