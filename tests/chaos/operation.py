"""The campaign's operation: it leaves evidence, runs a real tool, and publishes a file with its token."""

import hashlib
import os
import posixpath
from pathlib import Path
from typing import Annotated, Any

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.operations import OperationDeclaration, Phase
from subjects.result import Outputs
from subjects.spec import JobSpec
from tests.chaos import ledger
from workers.context import JobContext, OperationResult
from workers.outputs import StagedFile, output_errors

STEPS = 4


class ChaosParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`name` is the output's file name, none for no output; attempts before `succeeds_at` fail."""

    ledger: str
    seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0
    name: str | None = None
    succeeds_at: int = 1


def written(spec: JobSpec, parameters: ChaosParameters) -> tuple[str, ...]:
    return (posixpath.join(spec.artifacts.output_path, parameters.name),) if parameters.name else ()


CHAOS = OperationDeclaration(
    name="chaos",
    summary="Leave evidence of every execution; for the fault campaign.",
    parameters=ChaosParameters,
    phases=(Phase("think", 1), Phase("work", 2)),
    runner="tests.chaos.operation:Chaos",
    writes=written,
)


class Chaos:
    async def run(self, job: JobContext) -> OperationResult:
        wanted: ChaosParameters = job.parameters
        evidence = Path(wanted.ledger)
        ledger.append(evidence, "start", job.job_id, token=job.token, attempt=job.attempt)
        try:
            return await self._work(job, wanted)
        finally:
            ledger.append(evidence, "end", job.job_id, token=job.token, attempt=job.attempt)

    async def _work(self, job: JobContext, wanted: ChaosParameters) -> OperationResult:
        if wanted.name is None:
            await self._think(job, wanted)
            return OperationResult(summary={"fence": job.token})
        async with job.workplace() as place:
            await self._think(job, wanted)
            job.report.enter("work", "running a tool")
            await place.tools.run(["sleep", f"{wanted.seconds / 2:.3f}"])
            return await job.publish(*self._result(job, place.scratch / "out", job.output_path / wanted.name))

    async def _think(self, job: JobContext, wanted: ChaosParameters) -> None:
        job.report.enter("think")
        for step in range(STEPS):
            job.report.advance(step / STEPS)
            await anyio.sleep(wanted.seconds / 2 / STEPS)
        if job.attempt < wanted.succeeds_at:
            raise OperationFailed(ErrorCode.TOOL_FAILED, "made up")

    def _result(
        self, job: JobContext, source: Path, target: Path
    ) -> tuple[list[StagedFile], OperationResult]:
        content = f"{job.job_id} {job.token} ".encode() + os.urandom(64 * 1024)
        with output_errors(source):
            source.write_bytes(content)
        summary: dict[str, Any] = {"fence": job.token, "sha256": hashlib.sha256(content).hexdigest()}
        result = OperationResult(outputs=Outputs(fixed_image=str(target)), summary=summary)
        return [StagedFile(source, target)], result
