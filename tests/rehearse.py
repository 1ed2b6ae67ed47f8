"""A plug-in operation for tests: it does what its parameters say, so that each way to end can be had."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.operations import OperationDeclaration, Phase
from subjects.result import Outputs
from workers.context import JobContext, OperationResult
from workers.outputs import StagedFile, report_path


class RehearseParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`fail` is an error code to end with; `mark` a file to which each execution appends its attempt.

    `publish` leaves a file that is named after the job. `stubborn_tool` runs a tool that ignores SIGTERM,
    in the workplace, for `seconds`. `boast_bytes` is how much it says of itself wherever it can, and
    `flood_mib` how much a tool of it writes to each of its outputs. `log_lines` are lines of its log,
    `log_pause` seconds apart, and `report_bytes` is the size of the report that it publishes. `vc_password`
    is a secret, and `quote` what it says wherever it can.
    """

    seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0
    fail: str | None = None
    fail_until_attempt: int = 99
    mark: str | None = None
    defect: bool = False
    stubborn_tool: bool = False
    publish: bool = False
    boast_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    flood_mib: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    log_lines: tuple[str, ...] = ()
    log_pause: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0
    report_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    vc_password: str | None = None
    quote: str = ""


REHEARSE = OperationDeclaration(
    name="rehearse",
    summary="Do what the parameters say; for tests.",
    parameters=RehearseParameters,
    phases=(Phase("first", 1), Phase("second", 3)),
    runner="tests.rehearse:Rehearse",
    actions=("work",),
)

STEPS = 20


class Rehearse:
    async def run(self, job: JobContext) -> OperationResult:
        wanted: RehearseParameters = job.parameters
        if wanted.mark is not None:
            with Path(wanted.mark).open("a") as file:
                file.write(f"{job.attempt}\n")
        if wanted.stubborn_tool:
            await self._run_tool(job, wanted.seconds)
        elif wanted.seconds:
            await self._work(job, wanted.seconds)
        if wanted.flood_mib:
            await self._flood(job, wanted.flood_mib)
        await self._log(job, wanted.log_lines, wanted.log_pause)
        boast = "x" * wanted.boast_bytes
        if boast:
            job.report.enter("first", boast)
        if wanted.defect:
            raise ZeroDivisionError("made up")
        if wanted.fail is not None and job.attempt < wanted.fail_until_attempt:
            raise OperationFailed(ErrorCode(wanted.fail), f"made up{boast}{wanted.quote}", boast=boast)
        summary = {"attempt": job.attempt, **({"boast": boast} if boast else {})}
        quoted = (f"quoted {wanted.quote}",) if wanted.quote else ()
        result = OperationResult(summary=summary, warnings=(*quoted, *(boast,) * len(boast[:1000])))
        if wanted.report_bytes:
            result = await self._report(job, result, wanted.report_bytes)
        return await self._publish(job, result) if wanted.publish else result

    async def _log(self, job: JobContext, lines: Sequence[str], pause: float) -> None:
        if not lines:
            return
        async with job.workplace() as place:
            for each in lines:
                place.log.line(each)
                await anyio.sleep(pause)

    async def _report(self, job: JobContext, result: OperationResult, size: int) -> OperationResult:
        async with job.workplace() as place:
            source, target = place.scratch / "report", report_path(job.output_path, job.job_id)
            source.write_bytes(b"r" * size)
            told = msgspec.structs.replace(result, outputs=Outputs(report=str(target)))
            return await job.publish([StagedFile(source, target)], told)

    async def _publish(self, job: JobContext, result: OperationResult) -> OperationResult:
        async with job.workplace() as place:
            source = place.scratch / "out"
            source.write_text(f"attempt {job.attempt}")
            return await job.publish([StagedFile(source, job.output_path / f"{job.job_id}.out")], result)

    async def _run_tool(self, job: JobContext, seconds: float) -> None:
        job.report.enter("first", "running a tool")
        async with job.workplace() as place:
            await place.tools.run(["sh", "-c", f"trap '' TERM; sleep {seconds}"])

    async def _flood(self, job: JobContext, mib: int) -> None:
        program = (
            "import sys\n"
            "line = b'x' * 70 + b'\\n' + b'y' * 9000\n"
            f"for _ in range({mib << 20} // len(line)):\n"
            "    sys.stdout.buffer.write(line)\n"
            "    sys.stderr.buffer.write(line)\n"
        )
        async with job.workplace() as place:
            await place.tools.run(["/usr/bin/python3", "-c", program])

    async def _work(self, job: JobContext, seconds: float) -> None:
        for phase in ("first", "second"):
            job.report.enter(phase, "working")
            for step in range(STEPS):
                job.report.advance(step / STEPS)
                await anyio.sleep(seconds / 2 / STEPS)
