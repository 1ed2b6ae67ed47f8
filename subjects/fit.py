"""Whether a worker fits a job: what the job asks for, and what a worker lacks of it.

Nothing here does input or output.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from subjects.fleet import WorkerCapabilities
from subjects.lanes import lane_name, lane_needs
from subjects.record import JobRecord
from subjects.spec import JobSpec

_TERABYTE: Final = 10**12
NOBODY: Final = "no live worker"
"""How the words begin for a job that no worker can run."""


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks of its worker. Gigabytes are powers of ten; None asks for nothing."""

    pool: str
    needs: frozenset[str]
    memory_gb: float | None = None
    disk_space_gb: float | None = None
    image_bytes: int | None = None

    @classmethod
    def of(cls, spec: JobSpec, needs: frozenset[str]) -> "Demand":
        """The demand of a job that is routed by these capabilities."""
        asked = spec.capability_requirements
        return cls(
            pool=spec.pool,
            needs=needs,
            memory_gb=asked.min_memory_gb,
            disk_space_gb=asked.min_disk_space_gb,
            image_bytes=spec.image.size_bytes,
        )

    @classmethod
    def of_record(cls, record: JobRecord) -> "Demand":
        """The demand of a job that was accepted: its lane stands in its record."""
        needs = lane_needs(record.lane)
        if record.spec is None:
            return cls(pool=record.pool, needs=needs)
        return msgspec.structs.replace(cls.of(record.spec, needs), pool=record.pool)

    @property
    def lane(self) -> str:
        return lane_name(self.needs)


def lacks(worker: WorkerCapabilities, demand: Demand) -> tuple[str, ...]:
    """Why the worker cannot run the job, in words; empty when it can."""
    found = (aspect.lacks(worker, demand) for aspect in _ASPECTS)
    return tuple(words for words in found if words is not None)


def unserved(demand: Demand, workers: Iterable[WorkerCapabilities]) -> str | None:
    """Why no worker can run the job, in words; None when one can.

    The words depend on the demand only, and on how much of it somebody meets.
    """
    able = list(workers)
    if not able:
        return NOBODY
    wanted: list[str] = []
    for aspect in _ASPECTS:
        wanted += aspect.wants(demand)
        able = [each for each in able if aspect.lacks(each, demand) is None]
        if not able:
            return f"{NOBODY} {', '.join(wanted)}"
    return None


def preferred(demand: Demand, wanted: frozenset[str], workers: Iterable[WorkerCapabilities]) -> Demand:
    """The demand with these capabilities on top, if one of the workers has them all; as it is otherwise."""
    better = msgspec.structs.replace(demand, needs=demand.needs | wanted)
    return better if any(not lacks(each, better) for each in workers) else demand


class _Aspect(msgspec.Struct, frozen=True):
    """One thing to look at: what a worker lacks of it, and what the job wants, each in words."""

    lacks: Callable[[WorkerCapabilities, Demand], str | None]
    wants: Callable[[Demand], Iterable[str]]


def _lacks_pool(worker: WorkerCapabilities, demand: Demand) -> str | None:
    return None if worker.pool == demand.pool else f"is in the pool {worker.pool}, not in {demand.pool}"


def _lacks_tokens(worker: WorkerCapabilities, demand: Demand) -> str | None:
    missing = sorted(token for token in demand.needs if not worker.capabilities.get(token, False))
    return f"lacks {', '.join(missing)}" if missing else None


def _lacks_memory(worker: WorkerCapabilities, demand: Demand) -> str | None:
    if demand.memory_gb is None or worker.memory_gb >= demand.memory_gb:
        return None
    return f"has {worker.memory_gb:g} GB of memory, not {demand.memory_gb:g}"


def _lacks_disk_space(worker: WorkerCapabilities, demand: Demand) -> str | None:
    if demand.disk_space_gb is None or worker.disk_space_gb >= demand.disk_space_gb:
        return None
    return f"has {worker.disk_space_gb:g} GB of disk space, not {demand.disk_space_gb:g}"


def _lacks_disk_size(worker: WorkerCapabilities, demand: Demand) -> str | None:
    size = (demand.image_bytes or 0) / _TERABYTE
    if not worker.max_disk_size_tb or size <= worker.max_disk_size_tb:
        return None
    return f"takes disks of {worker.max_disk_size_tb:g} TB at most, not of {size:g}"


def _lacks_readiness(worker: WorkerCapabilities, demand: Demand) -> str | None:
    del demand
    if worker.draining:
        return "is draining"
    return "is cordoned" if worker.cordoned else None


def _wants_tokens(demand: Demand) -> Iterator[str]:
    if demand.needs:
        yield f"has {' and '.join(sorted(demand.needs))}"


def _wants_memory(demand: Demand) -> Iterator[str]:
    if demand.memory_gb is not None:
        yield f"has {demand.memory_gb:g} GB of memory"


def _wants_disk_space(demand: Demand) -> Iterator[str]:
    if demand.disk_space_gb is not None:
        yield f"has {demand.disk_space_gb:g} GB of disk space"


def _wants_disk_size(demand: Demand) -> Iterator[str]:
    if demand.image_bytes is not None:
        yield f"takes a disk of {demand.image_bytes / _TERABYTE:g} TB"


_ASPECTS: Final = (
    _Aspect(_lacks_pool, lambda demand: [f"is in the pool {demand.pool}"]),
    _Aspect(_lacks_tokens, _wants_tokens),
    _Aspect(_lacks_memory, _wants_memory),
    _Aspect(_lacks_disk_space, _wants_disk_space),
    _Aspect(_lacks_disk_size, _wants_disk_size),
    _Aspect(_lacks_readiness, lambda _: ["takes new jobs"]),
)
