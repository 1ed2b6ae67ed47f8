"""The narrow view of a job that an operation gets: what to do, where to work, how to report."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from subjects.manifest import DiskFacts
from subjects.result import Outputs
from subjects.spec import JobSpec
from workers.outputs import StagedFile
from workers.site import ANYWHERE, Site
from workers.workplace import Workplace


class Report(Protocol):
    """Where an operation says how far it is. Both calls return at once; sending is throttled elsewhere."""

    def enter(self, phase: str, message: str = "") -> None:
        """Begin one of the declared phases."""

    def advance(
        self,
        fraction: float,
        message: str = "",
        *,
        bytes_done: int | None = None,
        bytes_total: int | None = None,
    ) -> None:
        """Say how much of the current phase is done, 0.0 to 1.0."""


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation knows of the disks that it read and wrote, and versions by tool."""

    inputs: tuple[DiskFacts, ...] = ()
    outputs: tuple[DiskFacts, ...] = ()
    tools: dict[str, str] = {}


class OperationResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a successful operation leaves. `summary` is the report's essence, small enough for a record.

    `provenance` goes into the attempt's manifest.
    """

    outputs: Outputs = Outputs()
    disk_read_bytes: int = 0
    disk_write_bytes: int = 0
    warnings: tuple[str, ...] = ()
    summary: dict[str, Any] = {}
    provenance: Provenance = Provenance()


class JobContext(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one job.

    `workplace` opens the attempt's scratch directory, log and tools; an operation that touches no files
    leaves it alone. `capabilities` are what this worker was seen to do. `publish` gives finished files
    of the scratch directory their final names, with the result that they belong to; it is the only way
    for an operation to make anything visible. `site` is what the job may reach on this host.
    """

    job_id: str
    attempt: int
    token: int
    spec: JobSpec
    parameters: Any
    actions: tuple[str, ...]
    capabilities: frozenset[str]
    report: Report
    workplace: Callable[[], AbstractAsyncContextManager[Workplace]]
    site: Site = ANYWHERE
    publish: Callable[[Sequence[StagedFile], OperationResult], Awaitable[OperationResult]]

    @property
    def output_path(self) -> Path:
        return Path(self.spec.artifacts.output_path)

    def wants(self, action: str) -> bool:
        """Whether the job asks for this action: all of them, unless it names some."""
        return action in self.actions


class Operation(Protocol):
    """One class per operation. An instance serves one attempt.

    `run` returns only when the work is done and proven; it raises OperationFailed with a code
    otherwise. It may be cancelled at any await and must leave nothing outside its workplace then.
    `return await job.publish(files, result)` is its last step, inside its workplace: what is visible
    belongs to the result that is returned.
    """

    async def run(self, job: JobContext) -> OperationResult: ...
