"""Operations that take their time: one speaks of its progress, one has a tool that goes on, one stays.

Loaded only by the bench.
"""

import anyio
import msgspec

from subjects.operations import OperationDeclaration, Phase
from workers.context import JobContext, OperationResult

STEPS = 20
STEP_SECONDS = 0.26
"""A little more than the pause between two looks at what is new to tell: each step is told by itself."""
DISK_MIB = 64
TOOL = "qemu-img"


class PacedParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """They take none."""


SPEAK = OperationDeclaration(
    name="speak",
    summary="Enter one phase after the other; for measuring the bus.",
    parameters=PacedParameters,
    phases=tuple(Phase(f"step-{number}", 1) for number in range(STEPS)),
    runner="h2kbus.cli.bench.paced:Speak",
)

HOLD = OperationDeclaration(
    name="hold",
    summary="Copy a disk as slowly as qemu-img does it; for measuring the bus.",
    parameters=PacedParameters,
    phases=(Phase("hold", 1),),
    runner="h2kbus.cli.bench.paced:Hold",
    needs=frozenset({TOOL}),
)

STAY = OperationDeclaration(
    name="stay",
    summary="Take a worker's slot until cancelled; for measuring the bus.",
    parameters=PacedParameters,
    phases=(Phase("stay", 1),),
    runner="h2kbus.cli.bench.paced:Stay",
)


class Speak:
    """Tells each of its steps."""

    async def run(self, job: JobContext) -> OperationResult:
        for phase in SPEAK.phases:
            job.report.enter(phase.name)
            await anyio.sleep(STEP_SECONDS)
        return OperationResult()


class Hold:
    """Runs until it is cancelled, for all that is wanted of it here: its tool copies 64 KiB a second."""

    async def run(self, job: JobContext) -> OperationResult:
        job.report.enter("hold")
        async with job.workplace() as place:
            disk = place.scratch / "disk.raw"
            disk.write_bytes(b"x" * (DISK_MIB << 20))
            slowly = [TOOL, "convert", "-r", "64K", "-f", "raw", "-O", "qcow2", "disk.raw", "copy.qcow2"]
            await place.tools.run(slowly)
        return OperationResult()


class Stay:
    """Does nothing, until it is cancelled."""

    async def run(self, job: JobContext) -> OperationResult:
        job.report.enter("stay")
        await anyio.sleep_forever()
        return OperationResult()
