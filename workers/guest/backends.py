"""Which rescue environment a worker opens, by what it was seen to do, and the opening of it."""

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from workers.guest.rescue import Rescue, greeting
from workers.qemu import Disk
from workers.workplace import Workplace

Backend = Literal["guestfs", "kernel"]

READY_SECONDS: Final = 300.0
"""The first appliance on a host is built before it starts, which takes a minute under emulation."""

MEMORY_MB: Final = 1280
NEEDS: Final[dict[Backend, frozenset[str]]] = {
    "guestfs": frozenset({"guestfs"}),
    "kernel": frozenset({"nbd", "mount", "lvm"}),
}
"""In the order of preference: the appliance confines what a hostile filesystem can do to a kernel."""

SYSTEM_PYTHON: Final = "/usr/bin/python3"
_HERE: Final = Path(__file__).parent
_CACHE: Final = Path("/var/tmp")  # noqa: S108 - libguestfs keeps its appliance there by default, and checks its owner


def choose(capabilities: frozenset[str], asked: frozenset[str] = frozenset()) -> Backend | None:
    """The backend that these capabilities allow, None without one; a job asking for nbd gets the kernel."""
    able = [name for name, needs in NEEDS.items() if needs <= capabilities]
    if "kernel" in able and "nbd" in asked:
        return "kernel"
    return next(iter(able), None)


@asynccontextmanager
async def open_rescue(
    place: Workplace, disk: Disk, backend: Backend, *, read_only: bool, accelerated: bool
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
        "sysroot": str(place.scratch / "sysroot"),
    }
    argv = [*_command(backend), msgspec.json.encode(settings).decode()]
    async with place.tools.converse(argv, environment=_environment(place.scratch)) as conversation:
        hello = await greeting(conversation, READY_SECONDS)
        rescue = Rescue(conversation, place.log, hello)
        place.log.line(f"the disk is attached: {rescue.tool}, {rescue.device}")
        yield rescue


def _command(backend: Backend) -> Sequence[str]:
    if backend == "guestfs":
        return [SYSTEM_PYTHON, "-I", str(_HERE / "appliance.py")]
    private = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--net"]
    return [*private, SYSTEM_PYTHON, "-I", str(_HERE / "attached.py")]


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


def require_backend(capabilities: frozenset[str], asked: frozenset[str]) -> Backend:
    """Like `choose`; raises CAPABILITY_MISSING where there is none."""
    backend = choose(capabilities, asked)
    if backend is None:
        message = "this worker can open no guest: it has neither guestfs, nor nbd with mount and lvm"
        raise OperationFailed(ErrorCode.CAPABILITY_MISSING, message)
    return backend
