"""Whether this host has the room that a job asks for, as it is when the job is claimed."""

from pathlib import Path
from typing import Final

import anyio.to_thread
import msgspec

from subjects.fit import Demand, lacks
from subjects.fleet import WorkerCapabilities
from subjects.spec import JobSpec
from workers.outputs import free_bytes

GIGABYTE: Final = 1_000_000_000


async def shortage(spec: JobSpec, profile: WorkerCapabilities) -> str | None:
    """What this host lacks for the job, in words; None when it has enough.

    Its lane has brought the job here, so capabilities are not looked at again; the disk space that counts
    is the space where the outputs go. Raises OperationFailed when that cannot be measured.
    """
    demand = Demand.of(spec, frozenset())
    if demand.disk_space_gb is not None:
        free = await anyio.to_thread.run_sync(_free_gb, Path(spec.artifacts.output_path))
        profile = msgspec.structs.replace(profile, disk_space_gb=free)
    return "; ".join(lacks(profile, demand)) or None


def _free_gb(directory: Path) -> float:
    """Room where the directory is, or will be made."""
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    return round(free_bytes(existing) / GIGABYTE, 1)
