"""Whether this host has the room that a job asks for, as it is when the job is claimed."""

import math
from typing import Final

import anyio.to_thread
import msgspec

from h2kbus.errors import OperationFailed
from subjects.fit import Demand, lacks
from subjects.fleet import WorkerCapabilities
from subjects.spec import JobSpec
from workers.outputs import free_bytes
from workers.site import Destination, Site

GIGABYTE: Final = 1_000_000_000


async def shortage(spec: JobSpec, profile: WorkerCapabilities, site: Site) -> str | None:
    """What this host lacks for the job, in words; None when it has enough.

    Its lane has brought the job here, so capabilities are not looked at again; the disk space that counts
    is the space where the outputs go. If that cannot be measured, it is the attempt that finds out why.
    """
    demand = Demand.of(spec, frozenset())
    if demand.disk_space_gb is not None:
        free = await anyio.to_thread.run_sync(_free_gb, site.destination(spec.artifacts.output_path))
        profile = msgspec.structs.replace(profile, disk_space_gb=free)
    return "; ".join(lacks(profile, demand)) or None


def _free_gb(destination: Destination) -> float:
    """Room where the directory is, or will be made."""
    for each in (destination.path, *destination.path.parents):
        try:
            with msgspec.structs.replace(destination, path=each).opened() as existing:
                return round(free_bytes(existing.inside) / GIGABYTE, 1)
        except FileNotFoundError:
            continue
        except (OSError, OperationFailed):
            break
    return math.inf
