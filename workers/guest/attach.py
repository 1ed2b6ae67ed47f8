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
from workers.limits import APPLIANCE
from workers.links import HOLD, holding, linked
from workers.qemu import BRIEF, Disk
from workers.sandbox import KVM, Allowance
from workers.workplace import Workplace

GUESTFS: Final = "guestfs"
"""The capability of opening guests. Why it is the only way: docs/decisions/0016."""

READY_SECONDS: Final = 300.0
"""Under emulation an appliance takes a minute to start."""

MAX_BACKING_NAME: Final = 1023
"""The longest name of a backing file that a qcow2 header holds, in bytes."""

_LAYER: Final = "layer.qcow2"
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
        "path": disk.file,
        "format": disk.driver,
        "read_only": read_only,
        "accelerated": accelerated,
        "memory_mb": MEMORY_MB,
    }
    program = [SYSTEM_PYTHON, "-I", str(_APPLIANCE), msgspec.json.encode(settings).decode()]
    needs = await appliance_needs(place, accelerated=accelerated)
    allowance = msgspec.structs.replace(needs.allowance, readable=(*needs.allowance.readable, _APPLIANCE))
    with holding(place.scratch, SYSTEM_PYTHON) as hold:
        async with place.tools.converse(
            [*hold, *program], environment=needs.environment, allowance=allowance, pass_fds=disk.handed
        ) as conversation:
            hello = await greeting(conversation, READY_SECONDS)
            rescue = Rescue(conversation, place.log, hello)
            place.log.line(f"the disk is attached: {rescue.tool}, {rescue.device}")
            yield rescue


async def appliance_needs(place: Workplace, *, accelerated: bool) -> ApplianceNeeds:
    """What libguestfs needs to boot its appliance with a disk of the scratch directory.

    It keeps what it makes there too: nothing that a guest touched serves the next one. Raises as
    `built_appliance`.
    """
    appliance = await built_appliance(place.tools)
    scratch = place.tools.seen_scratch
    environment = {
        "LIBGUESTFS_PATH": str(appliance),
        "LIBGUESTFS_CACHEDIR": scratch,
        "LIBGUESTFS_TMPDIR": scratch,
    }
    devices = KVM if accelerated else ()
    return ApplianceNeeds(
        environment, Allowance(limits=APPLIANCE, readable=(appliance, HOLD), devices=devices)
    )


@asynccontextmanager
async def overlay(place: Workplace, source: Disk) -> AsyncIterator[Disk]:
    """A throwaway layer over the source: what is written goes there, and the source stays as it is.

    The layer names the source by links that lead to its descriptors: programs that libguestfs starts
    inherit none. Raises IMAGE_UNSAFE for a chain of files that is too long to be named.
    """
    below = linked(place.scratch, source)
    if len(below.name) > MAX_BACKING_NAME:
        message = f"{source.path} builds on more files than a layer over it can name"
        raise OperationFailed(ErrorCode.IMAGE_UNSAFE, message)
    layer = Disk(
        path=place.private.path / _LAYER,
        inside=_LAYER,
        format="qcow2",
        linked=below.handed,
        made_here=True,
        layered=True,
    )
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", below.driver, "-b", below.name]
    await place.tools.run([*argv, "--", layer.name], allowance=BRIEF, pass_fds=layer.handed)
    try:
        yield layer
    finally:
        with contextlib.suppress(OSError), anyio.CancelScope(shield=True):
            await anyio.Path(place.scratch / _LAYER).unlink()


def require_guestfs(capabilities: frozenset[str]) -> None:
    """Raise CAPABILITY_MISSING on a worker that opens no guests."""
    if GUESTFS not in capabilities:
        message = "this worker can open no guest: it has no libguestfs"
        raise OperationFailed(ErrorCode.CAPABILITY_MISSING, message, capability=GUESTFS)
