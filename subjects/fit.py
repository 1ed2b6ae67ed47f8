"""Whether a worker fits a job: what the job asks for, and what a worker lacks of it.

Nothing here does input or output.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from subjects.fleet import WorkerCapabilities
from subjects.lanes import lane_name, lane_needs
from subjects.record import JobRecord
from subjects.spec import JobSpec

_TERABYTE: Final = 10**12


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
    return tuple(words for check in _CHECKS for words in check(worker, demand))


def preferred(demand: Demand, wanted: frozenset[str], workers: Iterable[WorkerCapabilities]) -> Demand:
    """The demand with these capabilities on top, if one of the workers has them all; as it is otherwise."""
    better = msgspec.structs.replace(demand, needs=demand.needs | wanted)
    return better if any(not lacks(each, better) for each in workers) else demand


def _pool(worker: WorkerCapabilities, demand: Demand) -> Iterator[str]:
    if worker.pool != demand.pool:
        yield f"is in the pool {worker.pool}, not in {demand.pool}"


def _tokens(worker: WorkerCapabilities, demand: Demand) -> Iterator[str]:
    missing = sorted(token for token in demand.needs if not worker.capabilities.get(token, False))
    if missing:
        yield f"lacks {', '.join(missing)}"


def _memory(worker: WorkerCapabilities, demand: Demand) -> Iterator[str]:
    if demand.memory_gb is not None and worker.memory_gb < demand.memory_gb:
        yield f"has {worker.memory_gb:g} GB of memory, not {demand.memory_gb:g}"


def _disk_space(worker: WorkerCapabilities, demand: Demand) -> Iterator[str]:
    if demand.disk_space_gb is not None and worker.disk_space_gb < demand.disk_space_gb:
        yield f"has {worker.disk_space_gb:g} GB of disk space, not {demand.disk_space_gb:g}"


def _disk_size(worker: WorkerCapabilities, demand: Demand) -> Iterator[str]:
    size = (demand.image_bytes or 0) / _TERABYTE
    if worker.max_disk_size_tb and size > worker.max_disk_size_tb:
        yield f"takes disks of {worker.max_disk_size_tb:g} TB at most, not of {size:g}"


def _drain(worker: WorkerCapabilities, demand: Demand) -> Iterator[str]:
    del demand
    if worker.draining:
        yield "is draining"


_CHECKS: Final[Sequence[Callable[[WorkerCapabilities, Demand], Iterator[str]]]] = (
    _pool,
    _tokens,
    _memory,
    _disk_space,
    _disk_size,
    _drain,
)
