"""Where an attempt works: a scratch directory beside the outputs, the job's log, and the tools."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from h2kbus.redaction import PLAIN, Redactor
from subjects.lease import Lease
from workers.joblog import JobLog
from workers.outputs import (
    StagedFile,
    intermediate_path,
    log_path,
    open_output,
    output_errors,
    scratch_directory,
)
from workers.process import GRACE_SECONDS, ToolRunner
from workers.scratch import fresh
from workers.site import Destination, OpenDirectory

GRACE_SHARE: Final = 0.05
"""The most of a lease that a tool may take to end after SIGTERM."""


class Workplace(msgspec.Struct, frozen=True):
    """What one attempt has of its own.

    `output` is the directory of the results, `private` a directory inside it, so on the same filesystem:
    everything in it goes away with the attempt. Both are held open. The log stays: all attempts of a job
    append to it.
    """

    output: OpenDirectory
    private: OpenDirectory
    log: JobLog
    tools: ToolRunner

    @property
    def scratch(self) -> Path:
        """The private directory as this process names it. Tools work in it: they get names within it."""
        return self.private.inside


def stage_intermediates(
    place: Workplace, kept: Mapping[str, bytes], output_path: Path, job_id: str
) -> list[StagedFile]:
    """Write what a job that keeps its intermediates keeps, ready to be published with its results."""
    staged = []
    for name, content in kept.items():
        source = place.scratch / name
        with output_errors(source), fresh(source) as file:
            file.write(content)
        staged.append(StagedFile(source, intermediate_path(output_path, job_id, name)))
    return staged


@asynccontextmanager
async def open_workplace(
    destination: Destination,
    job_id: str,
    lease: Lease,
    is_needed: Callable[[], bool],
    *,
    confined: bool = False,
    redactor: Redactor = PLAIN,
) -> AsyncIterator[Workplace]:
    """Make the workplace of the attempt that has this lease. Raises OUTPUT_UNWRITABLE or NO_SPACE.

    `is_needed` says at the end whether its scratch directory has to stay. `confined` must be true only
    where sandboxes were proven to work. `redactor` takes the job's secrets out of its log.
    """
    # However short the lease, tools are gone before it counts as lost.
    grace = min(GRACE_SECONDS, lease.seconds * GRACE_SHARE)
    with open_output(destination, make=True) as output:
        async with scratch_directory(output, job_id, lease.token, is_needed) as private:
            with JobLog(log_path(output.path, job_id), output.inside, redactor=redactor) as log:
                tools = ToolRunner(log, private.inside, grace_seconds=grace, confined=confined)
                yield Workplace(output, private, log, tools)
