"""Copies of logs in the fleet's object store, so that they outlive the host that wrote them.

They are written as NATS's own object stores are, so that its tools read them. A name is used once, so nothing
is ever looked up, replaced or purged, and a worker needs no right to do so.
"""

import base64
import hashlib
import io
import logging
import os
import secrets
from typing import Final

import anyio
import msgspec

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
CHUNK_BYTES: Final = 128 * 1024
"""The size of a chunk in NATS's own object stores."""


class ObjectInfo(msgspec.Struct, frozen=True):
    """What an object store says of an object, in its own terms; `nuid` names its chunks."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str


async def upload_log(
    connection: Connection, topology: Topology, lease: HeldLease, outcome: Outcome, site: Site
) -> Outcome:
    """Store the attempt's log if the job asks for it; not being able to is a warning, no failure."""
    spec = lease.entry.record.spec
    if spec is None or not spec.artifacts.log_upload or outcome.log_file is None:
        return outcome
    name = f"{lease.job_id}/{lease.entry.record.attempt}/log"
    try:
        with anyio.fail_after(UPLOAD_SECONDS):
            data = await anyio.to_thread.run_sync(
                log_tail, site.destination(spec.artifacts.output_path), outcome.log_file.name
            )
            await put(connection, topology.artifacts_store, name, data)
    except (TimeoutError, OSError, OperationFailed, BusError) as error:
        log.warning("job %s: its log was not uploaded: %s", lease.job_id, error)
        return msgspec.structs.replace(
            outcome, warnings=(*outcome.warnings, f"the log was not uploaded: {error}")
        )
    return outcome


async def put(connection: Connection, store: str, name: str, data: bytes) -> None:
    """Store an object under a name that has none: its chunks first, then what it is. Raises BusError."""
    nuid = secrets.token_hex(11)
    chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    for chunk in chunks:
        await connection.publish(f"$O.{store}.C.{nuid}", chunk)
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
    info = ObjectInfo(name, store, nuid, len(data), len(chunks), f"SHA-256={digest}")
    key = base64.urlsafe_b64encode(name.encode()).decode()
    await connection.publish(f"$O.{store}.M.{key}", msgspec.json.encode(info))


def log_tail(destination: Destination, name: str) -> bytes:
    """The end of a log, at most `UPLOAD_BYTES`. Raises OSError and OperationFailed, for a link too."""
    with open_output(destination) as output:
        descriptor = os.open(name, _READ, dir_fd=output.descriptor)
    with os.fdopen(descriptor, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - UPLOAD_BYTES, 0))
        return file.read(UPLOAD_BYTES)
