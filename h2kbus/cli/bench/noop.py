"""An operation that does nothing: what is left is the cost of the bus. Loaded only by the bench."""

import msgspec

from subjects.operations import OperationDeclaration, Phase
from workers.context import JobContext, OperationResult


class NoopParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It takes none."""


NOOP = OperationDeclaration(
    name="noop",
    summary="Do nothing; for measuring the bus.",
    parameters=NoopParameters,
    phases=(Phase("noop", 1),),
    runner="h2kbus.cli.bench.noop:Noop",
)


class Noop:
    """Ends at once."""

    async def run(self, job: JobContext) -> OperationResult:
        return OperationResult(summary={"job": job.job_id})
