"""Copies of logs in the fleet's object store, so that they outlive the host that wrote them."""

import io
import logging
import os
from typing import Final

import anyio
import msgspec

from h2kbus.artifacts import log_name, put
from h2kbus.connection import Connection
from h2kbus.errors import BusError, OperationFailed
from subjects.topology import Topology
from workers.execute import Outcome
from workers.lease import HeldLease
from workers.outputs import open_output
from workers.site import Destination, Site

log = logging.getLogger("h2kbus.worker")

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

UPLOAD_SECONDS: Final = 30.0
UPLOAD_BYTES: Final = 4 * 1024 * 1024
"""The end of a longer log is what is kept: errors stand there."""


async def upload_log(
    connection: Connection, topology: Topology, lease: HeldLease, outcome: Outcome, site: Site
) -> Outcome:
    """Store the attempt's log if the job asks for it; not being able to is a warning, no failure."""
    spec = lease.entry.record.spec
    if spec is None or not spec.artifacts.log_upload or outcome.log_file is None:
        return outcome
    name = log_name(lease.job_id, lease.entry.record.attempt)
    try:
        with anyio.fail_after(UPLOAD_SECONDS):
            data = await anyio.to_thread.run_sync(
                log_tail, site.destination(spec.artifacts.output_path), outcome.log_file.name
            )
            await put(connection, topology, name, data)
    except (TimeoutError, OSError, OperationFailed, BusError) as error:
        log.warning("job %s: its log was not uploaded: %s", lease.job_id, error)
        return msgspec.structs.replace(
            outcome, warnings=(*outcome.warnings, f"the log was not uploaded: {error}")
        )
    return outcome


def log_tail(destination: Destination, name: str) -> bytes:
    """The end of a log, at most `UPLOAD_BYTES`. Raises OSError and OperationFailed, for a link too."""
    with open_output(destination) as output:
        descriptor = os.open(name, _READ, dir_fd=output.descriptor)
    with os.fdopen(descriptor, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - UPLOAD_BYTES, 0))
        return file.read(UPLOAD_BYTES)
