"""What attempts leave in the fleet's object store, so that it outlives their host: log, report, manifest."""

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec

from h2kbus.artifacts import Artifact, Upload, log_name, manifest_name, put, report_name
from h2kbus.connection import Connection
from h2kbus.errors import BusError, InvalidMessage, OperationFailed
from h2kbus.signing import Signer
from subjects.codec import encode
from subjects.manifest import KeptObject, Manifest
from subjects.topology import Topology
from workers.execute import Outcome
from workers.job_files import content_of
from workers.lease import HeldLease, LeaseKeeper
from workers.log_upload import LogUpload
from workers.manifest import manifest_of
from workers.site import Site

log = logging.getLogger("h2kbus.worker")

UPLOAD_SECONDS: Final = 30.0
"""How long the end of an attempt waits for its uploads, and no longer than for half of its lease."""
STREAM_SECONDS: Final = 1.0
"""What an attempt logs is stored this often at the most, and not before it has run for so long."""
REPORT_BYTES: Final = 8 * 1024 * 1024
"""A report is kept whole or not at all."""


class Uploads:
    """Puts what the attempts of one worker leave into the object store, if their jobs ask for it."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        site: Site,
        keeper: LeaseKeeper,
        signer: Signer | None = None,
    ) -> None:
        """`keeper` knows the attempts that run. With a `signer`, manifests are signed."""
        self._keeper = keeper
        # None for a log that is whole: nothing more of it is stored.
        self._logs: dict[HeldLease, LogUpload | None] = {}
        self._streaming: set[HeldLease] = set()
        self._connection = connection
        self._topology = topology
        self._site = site
        self._signer = signer

    async def run(self) -> None:
        """Store what the attempts log while they run, until cancelled."""
        async with anyio.create_task_group() as group:
            while True:
                await anyio.sleep(STREAM_SECONDS)
                held = self._keeper.leases
                self._logs = {lease: each for lease, each in self._logs.items() if lease in held}
                for lease in held:
                    upload = self._log_of(lease)
                    tools = lease.tools
                    idle = lease not in self._streaming and lease.age >= STREAM_SECONDS
                    if upload and tools and idle and upload.lacks(tools.log.size):
                        self._streaming.add(lease)
                        group.start_soon(self._advance, lease, upload)

    async def _advance(self, lease: HeldLease, upload: LogUpload) -> None:
        """What cannot be stored now is stored the next time, or at the end."""
        try:
            await upload.advance()
        except (OSError, OperationFailed, BusError) as error:
            log.debug("job %s: its log is not stored yet: %s", lease.job_id, error)
        finally:
            self._streaming.discard(lease)

    def _log_of(self, lease: HeldLease) -> LogUpload | None:
        """The upload of an attempt's log; None if there is none to be, or it is over already."""
        spec = lease.entry.record.spec
        if spec is None or not spec.artifacts.log_upload or lease.log_file is None:
            return None
        if lease not in self._logs:
            name = log_name(lease.job_id, lease.entry.record.attempt)
            destination = self._site.destination(spec.artifacts.output_path)
            upload = Upload(self._connection, self._topology, name)
            self._logs[lease] = LogUpload(upload, destination, lease.log_file, lease.log_from)
        return self._logs[lease]

    async def finish(self, lease: HeldLease, outcome: Outcome) -> Outcome:
        """Store the attempt's log, report and manifest; not being able to is a warning, no failure."""
        spec, upload = lease.entry.record.spec, self._log_of(lease)
        if spec is None or upload is None:
            return outcome
        self._logs[lease] = None
        destination = self._site.destination(spec.artifacts.output_path)
        report = outcome.result.outputs.report if outcome.result else None
        attempt = lease.entry.record.attempt
        failures: list[str] = []
        kept: list[Artifact] = []
        manifest: Artifact | None = None
        seconds = min(UPLOAD_SECONDS, lease.terms.seconds / 2)
        with anyio.move_on_after(seconds) as deadline:
            kept += await self._keep("log", upload.finish(), failures)
            if report is not None:
                content = content_of(destination, Path(report), most=REPORT_BYTES, whole=True)
                name = report_name(lease.job_id, attempt)
                kept += await self._keep("report", self._put(name, content), failures)
            manifest = await self._put_manifest(lease, outcome, kept, failures)
        if deadline.cancelled_caught:
            failures.append(f"not everything was uploaded: the bus took longer than {seconds:g} s")
        for each in failures:
            log.warning("job %s: %s", lease.job_id, each)
        return msgspec.structs.replace(
            outcome,
            warnings=(*outcome.warnings, *failures),
            manifest_sha256=manifest.sha256 if manifest else None,
        )

    async def _keep(self, what: str, step: Awaitable[Artifact], failures: list[str]) -> list[Artifact]:
        """Store one thing: what became of it, or nothing and why in `failures`."""
        try:
            return [await step]
        except (OSError, OperationFailed, BusError) as error:
            failures.append(f"the {what} was not uploaded: {error}")
            return []

    async def _put(self, name: str, content: AsyncGenerator[bytes]) -> Artifact:
        async with contextlib.aclosing(content):
            return await put(self._connection, self._topology, name, content)

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
