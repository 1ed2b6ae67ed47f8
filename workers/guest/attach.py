"""Attaches a guest's disk, or a throwaway layer over it, to a rescue environment."""

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.rescue import Rescue, greeting
from workers.links import holding, linked
from workers.qemu import Disk
from workers.workplace import Workplace

GUESTFS: Final = "guestfs"
"""The capability of opening guests. Why it is the only way: docs/decisions/0016."""

READY_SECONDS: Final = 300.0
"""The first appliance on a host is built before it starts, which takes a minute under emulation."""

MAX_BACKING_NAME: Final = 1023
"""The longest name of a backing file that a qcow2 header holds, in bytes."""

_LAYER: Final = "layer.qcow2"
MEMORY_MB: Final = 1280
SYSTEM_PYTHON: Final = "/usr/bin/python3"
_APPLIANCE: Final = Path(__file__).parent / "appliance.py"
_CACHE: Final = Path("/var/tmp")  # noqa: S108 - libguestfs keeps its appliance there by default, and checks its owner


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
    environment = _environment(place.scratch)
    with holding(place.scratch, SYSTEM_PYTHON) as hold:
        argv = [*hold, *program]
        async with place.tools.converse(argv, environment=environment, pass_fds=disk.handed) as conversation:
            hello = await greeting(conversation, READY_SECONDS)
            rescue = Rescue(conversation, place.log, hello)
            place.log.line(f"the disk is attached: {rescue.tool}, {rescue.device}")
            yield rescue


def _environment(scratch: Path) -> dict[str, str]:
    """Libguestfs keeps its built appliance between runs, and everything else in the scratch directory."""
    cache = os.environ.get("LIBGUESTFS_CACHEDIR", str(_CACHE))
    return {"LIBGUESTFS_CACHEDIR": cache, "LIBGUESTFS_TMPDIR": str(scratch)}


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
    )
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", below.driver, "-b", below.name]
    await place.tools.run([*argv, "--", layer.name], pass_fds=layer.handed)
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
