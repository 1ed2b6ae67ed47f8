"""Where an attempt works: a scratch directory beside the outputs, the job's log, and the tools."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from workers.joblog import JobLog
from workers.outputs import (
    StagedFile,
    intermediate_path,
    log_path,
    output_errors,
    scratch_directory,
    sweep_scratch,
)
from workers.process import ToolRunner


class Workplace(msgspec.Struct, frozen=True):
    """What one attempt has of its own.

    `scratch` is a private directory on the same filesystem as the outputs; everything in it goes away
    with the attempt. The log stays: all attempts of a job append to it.
    """

    scratch: Path
    log: JobLog
    tools: ToolRunner


def stage_intermediates(
    place: Workplace, kept: Mapping[str, bytes], output_path: Path, job_id: str
) -> list[StagedFile]:
    """Write what a job that keeps its intermediates keeps, ready to be published with its results."""
    staged = []
    for name, content in kept.items():
        source = place.scratch / name
        with output_errors(source):
            source.write_bytes(content)
        staged.append(StagedFile(source, intermediate_path(output_path, job_id, name)))
    return staged


@asynccontextmanager
async def open_workplace(
    output_path: Path, job_id: str, *, token: int, attempt: int
) -> AsyncIterator[Workplace]:
    """Make the workplace of one attempt. Raises OUTPUT_UNWRITABLE or NO_SPACE.

    A later attempt first removes what earlier ones left when they were killed.
    """
    async with scratch_directory(output_path, job_id, token) as scratch:
        if attempt > 1:
            await sweep_scratch(output_path, job_id, before=token)
        with JobLog(log_path(output_path, job_id)) as log:
            yield Workplace(scratch, log, ToolRunner(log, scratch))
