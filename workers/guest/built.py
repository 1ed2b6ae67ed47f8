"""The appliance as files: built from this host's own packages, before a tool that boots it is confined.

Supermin reads the whole system for it, which a tool that works on a guest must not see. The place and the
lock are those of libguestfs itself, so that both share one appliance.
"""

import os
import platform
import stat
from pathlib import Path
from typing import Final

import anyio

from h2kbus.errors import ErrorCode, OperationFailed
from workers.limits import APPLIANCE
from workers.process import ToolRunner
from workers.sandbox import Allowance

SECONDS: Final = 600.0
"""Building takes half a minute on a slow host; looking whether it is up to date takes milliseconds."""

RECIPES: Final = (
    "usr/lib/*/guestfs/supermin.d",
    "usr/lib/guestfs/supermin.d",
    "usr/lib64/guestfs/supermin.d",
)
"""Where distributions keep what the appliance is made of, below the root directory."""

_CACHE: Final = Path("/var/tmp")  # noqa: S108 - libguestfs keeps its appliance there by default, and checks its owner
_MARK: Final = "README.fixed"
_WORDS: Final = "Built by supermin for h2kbus. libguestfs takes the files beside this one as they are.\n"


async def built_appliance(tools: ToolRunner) -> Path:
    """The directory of the appliance, as LIBGUESTFS_PATH takes it; it is built anew if packages changed.

    Raises TOOL_FAILED, TOOL_MISSING or NO_SPACE.
    """
    place = await anyio.to_thread.run_sync(_own_directory)
    target = place / "appliance.d"
    argv = ["supermin", "--build", "--if-newer", "--lock", str(place / "lock"), "--copy-kernel"]
    argv += ["-f", "ext2", "--host-cpu", platform.machine(), str(_recipe()), "-o", str(target)]
    await tools.run(argv, timeout=SECONDS, allowance=Allowance(limits=APPLIANCE, host=True))
    if not await anyio.Path(target / _MARK).exists():
        await anyio.Path(target / _MARK).write_text(_WORDS)
    return target


def _recipe() -> Path:
    found = sorted(each for pattern in RECIPES for each in Path("/").glob(pattern))
    if not found:
        message = "the recipe of libguestfs's appliance (supermin.d) is not installed"
        raise OperationFailed(ErrorCode.TOOL_MISSING, message)
    return found[0]


def _own_directory() -> Path:
    """Others can write to the directory above: what they could have made is not booted."""
    base = Path(os.environ.get("LIBGUESTFS_CACHEDIR", str(_CACHE)))
    place = base / f".guestfs-{os.geteuid()}"
    try:
        place.mkdir(mode=0o755, exist_ok=True)
        status = place.lstat()
    except OSError as error:
        raise OperationFailed(ErrorCode.TOOL_FAILED, f"{place}: {error.strerror}") from error
    if not _is_ours(status):
        message = f"{place} belongs to others or can be written to by them: no appliance is kept there"
        raise OperationFailed(ErrorCode.TOOL_FAILED, message)
    return place


def _is_ours(status: os.stat_result) -> bool:
    writers = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & writers
