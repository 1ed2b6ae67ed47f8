"""Copies of logs and reports in the fleet's object store, so that they outlive the host that wrote them."""

import contextlib
import logging
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import anyio
import msgspec

from h2kbus.artifacts import CHUNK_BYTES, log_name, put, report_name
from h2kbus.connection import Connection
from h2kbus.errors import BusError, ErrorCode, OperationFailed
from subjects.topology import Topology
from workers.execute import Outcome
from workers.joblog import MAX_LOG_BYTES, TAIL_BYTES
from workers.lease import HeldLease
from workers.outputs import open_output
from workers.site import Destination, Site

log = logging.getLogger("h2kbus.worker")

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

UPLOAD_SECONDS: Final = 30.0
LOG_BYTES: Final = MAX_LOG_BYTES + 2 * TAIL_BYTES
"""More than a log of ours has; what others append to the file is left out."""
REPORT_BYTES: Final = 8 * 1024 * 1024
"""A report is kept whole or not at all."""


class Uploads:
    """Puts what the attempts of one worker leave into the object store, if their jobs ask for it."""

    def __init__(self, connection: Connection, topology: Topology, site: Site) -> None:
        self._connection = connection
        self._topology = topology
        self._site = site

    async def finish(self, lease: HeldLease, outcome: Outcome) -> Outcome:
        """Store the attempt's log and report; not being able to is a warning, no failure."""
        spec = lease.entry.record.spec
        if spec is None or not spec.artifacts.log_upload or outcome.log_file is None:
            return outcome
        destination = self._site.destination(spec.artifacts.output_path)
        report = outcome.result.outputs.report if outcome.result else None
        attempt = lease.entry.record.attempt
        failures: list[str] = []
        with anyio.move_on_after(UPLOAD_SECONDS) as deadline:
            log_file = content_of(destination, outcome.log_file, start=lease.log_from, most=LOG_BYTES)
            await self._keep(log_name(lease.job_id, attempt), log_file, failures)
            if report is not None:
                content = content_of(destination, Path(report), most=REPORT_BYTES, whole=True)
                await self._keep(report_name(lease.job_id, attempt), content, failures)
        if deadline.cancelled_caught:
            failures.append(f"not everything was uploaded: the bus took longer than {UPLOAD_SECONDS:g} s")
        for each in failures:
            log.warning("job %s: %s", lease.job_id, each)
        return msgspec.structs.replace(outcome, warnings=(*outcome.warnings, *failures))

    async def _keep(self, name: str, content: AsyncGenerator[bytes], failures: list[str]) -> None:
        try:
            async with contextlib.aclosing(content):
                await put(self._connection, self._topology, name, content)
        except (OSError, OperationFailed, BusError) as error:
            failures.append(f"the {name.rpartition('/')[2]} was not uploaded: {error}")


async def content_of(
    destination: Destination, file: Path, *, start: int = 0, most: int, whole: bool = False
) -> AsyncGenerator[bytes]:
    """A file of a job's outputs, in chunks, from `start` on, at most `most` bytes of it.

    With `whole` a larger file is refused. Raises OSError and OperationFailed, for a link too.
    """
    if file.parent != destination.path:
        raise _refusal(f"{file} is not in {destination.path}")
    descriptor, size = await anyio.to_thread.run_sync(_opened, destination, file.name)
    try:
        if whole and size - start > most:
            raise _refusal(f"{file} has {size} bytes, and at most {most} are kept")
        end = min(size, start + most)
        while start < end:
            want = min(CHUNK_BYTES, end - start)
            chunk = await anyio.to_thread.run_sync(os.pread, descriptor, want, start)
            if not chunk:
                return
            start += len(chunk)
            yield chunk
    finally:
        os.close(descriptor)


def _opened(destination: Destination, name: str) -> tuple[int, int]:
    """A descriptor of the file, and its size now."""
    with open_output(destination) as output:
        descriptor = os.open(name, _READ, dir_fd=output.descriptor)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _refusal(f"{destination.path / name} is no ordinary file")
    return descriptor, status.st_size


def _refusal(words: str) -> OperationFailed:
    return OperationFailed(ErrorCode.OUTPUT_UNWRITABLE, words)
