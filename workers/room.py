"""Whether this host has the memory and the disk space that a job asks for."""

from pathlib import Path
from typing import Final

import anyio

from subjects.spec import JobSpec
from workers.outputs import free_bytes

GIGABYTE: Final = 1_000_000_000


async def shortage(spec: JobSpec, memory_gb: float) -> str | None:
    """What this host lacks for the job, in words; None when it has enough. Gigabytes are powers of ten.

    Raises OperationFailed when the output's filesystem cannot be measured.
    """
    asked = spec.capability_requirements
    if asked.min_memory_gb is not None and memory_gb < asked.min_memory_gb:
        return f"it asks for {asked.min_memory_gb:g} GB of memory and the host has {memory_gb:g}"
    if asked.min_disk_space_gb is None:
        return None
    free = await anyio.to_thread.run_sync(_free_gb, Path(spec.artifacts.output_path))
    if free < asked.min_disk_space_gb:
        return f"it asks for {asked.min_disk_space_gb:g} GB of disk space and the host has {free:.1f}"
    return None


def _free_gb(directory: Path) -> float:
    """Room where the directory is, or will be made."""
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    return free_bytes(existing) / GIGABYTE
