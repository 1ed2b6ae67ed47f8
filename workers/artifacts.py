"""What attempts leave in the fleet's object store, so that it outlives their host: log, report, manifest."""

import contextlib
import logging
import os
import stat
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec

from h2kbus.artifacts import CHUNK_BYTES, Artifact, log_name, manifest_name, put, report_name
from h2kbus.connection import Connection
from h2kbus.errors import BusError, ErrorCode, InvalidMessage, OperationFailed
from h2kbus.signing import Signer
from subjects.codec import encode
from subjects.manifest import KeptObject, Manifest
from subjects.topology import Topology
from workers.execute import Outcome
from workers.joblog import MAX_LOG_BYTES, TAIL_BYTES
from workers.lease import HeldLease
from workers.manifest import manifest_of
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

    def __init__(
        self, connection: Connection, topology: Topology, site: Site, signer: Signer | None = None
    ) -> None:
        """With a `signer`, manifests are signed."""
        self._connection = connection
        self._topology = topology
        self._site = site
        self._signer = signer

    async def finish(self, lease: HeldLease, outcome: Outcome) -> Outcome:
        """Store the attempt's log, report and manifest; not being able to is a warning, no failure."""
        spec = lease.entry.record.spec
        if spec is None or not spec.artifacts.log_upload or outcome.log_file is None:
            return outcome
        destination = self._site.destination(spec.artifacts.output_path)
        report = outcome.result.outputs.report if outcome.result else None
        attempt = lease.entry.record.attempt
        failures: list[str] = []
        kept: list[Artifact] = []
        manifest: Artifact | None = None
        with anyio.move_on_after(UPLOAD_SECONDS) as deadline:
            log_file = content_of(destination, outcome.log_file, start=lease.log_from, most=LOG_BYTES)
            kept += await self._keep(log_name(lease.job_id, attempt), log_file, failures)
            if report is not None:
                content = content_of(destination, Path(report), most=REPORT_BYTES, whole=True)
                kept += await self._keep(report_name(lease.job_id, attempt), content, failures)
            manifest = await self._put_manifest(lease, outcome, kept, failures)
        if deadline.cancelled_caught:
            failures.append(f"not everything was uploaded: the bus took longer than {UPLOAD_SECONDS:g} s")
        for each in failures:
            log.warning("job %s: %s", lease.job_id, each)
        return msgspec.structs.replace(
            outcome,
            warnings=(*outcome.warnings, *failures),
            manifest_sha256=manifest.sha256 if manifest else None,
        )

    async def _keep(self, name: str, content: AsyncGenerator[bytes], failures: list[str]) -> list[Artifact]:
        """Store one file: what became of it, or nothing and why in `failures`."""
        try:
            async with contextlib.aclosing(content):
                return [await put(self._connection, self._topology, name, content)]
        except (OSError, OperationFailed, BusError) as error:
            failures.append(f"the {name.rpartition('/')[2]} was not uploaded: {error}")
            return []

    async def _put_manifest(
        self, lease: HeldLease, outcome: Outcome, kept: Sequence[Artifact], failures: list[str]
    ) -> Artifact | None:
        objects = [KeptObject(name=each.name, size=each.size, sha256=each.sha256) for each in kept]
        manifest = manifest_of(lease, outcome, objects)
        if manifest is None:
            return None
        name = manifest_name(lease.job_id, manifest.attempt)
        try:
            signed = self._signed(manifest, failures)
            return await put(self._connection, self._topology, name, msgspec.json.format(encode(signed)))
        except (BusError, InvalidMessage) as error:
            failures.append(f"the manifest was not uploaded: {error}")
            return None

    def _signed(self, manifest: Manifest, failures: list[str]) -> Manifest:
        if self._signer is None:
            return manifest
        try:
            return self._signer.sign_manifest(manifest, self._topology.grammar.root)
        except InvalidMessage as error:
            failures.append(f"the manifest was not signed: {error}")
            return manifest


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
