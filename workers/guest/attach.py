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
from workers.qemu import Disk
from workers.workplace import Workplace

GUESTFS: Final = "guestfs"
"""The capability of opening guests. Why it is the only way: docs/decisions/0016."""

READY_SECONDS: Final = 300.0
"""The first appliance on a host is built before it starts, which takes a minute under emulation."""

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
        "path": str(disk.path),
        "format": disk.driver,
        "read_only": read_only,
        "accelerated": accelerated,
        "memory_mb": MEMORY_MB,
    }
    argv = [SYSTEM_PYTHON, "-I", str(_APPLIANCE), msgspec.json.encode(settings).decode()]
    async with place.tools.converse(argv, environment=_environment(place.scratch)) as conversation:
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

    The layer names the source by its path, because the programs that open it are not handed descriptors;
    whoever uses it looks afterwards whether the source is still the file that was checked.
    """
    layer = Disk(path=place.scratch / "layer.qcow2", format="qcow2")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", source.driver, "-b", _by_path(source)]
    await place.tools.run([*argv, "--", layer.name])
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
