"""Whether what an attempt left is what it was: its manifest, and by that its artifacts and its disks.

The job's record vouches for the manifest by a digest, and the worker's key by a signature; the manifest
vouches for everything else.
"""

import hashlib
import os
import stat
from collections.abc import AsyncIterator
from typing import Final, Literal

import anyio.to_thread
import msgspec

from h2kbus.artifacts import Artifact, find, manifest_name, read
from h2kbus.client import Bus
from h2kbus.errors import BusError, InvalidMessage, JobNotFound
from h2kbus.signing import is_genuine
from subjects.codec import decode
from subjects.manifest import DiskFacts, KeptObject, Manifest
from subjects.record import JobRecord
from subjects.sizes import MAX_BYTES

Verdict = Literal["ok", "unknown", "differs"]

_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. `unknown` is what nobody can say here, as of a disk on another host."""

    subject: str
    verdict: Verdict
    evidence: str


async def read_manifest(bus: Bus, job_id: str, attempt: int) -> tuple[bytes, Manifest]:
    """An attempt's manifest, as it is stored and as it is read.

    Raises JobNotFound if there is none, InvalidMessage for what is none, and BusError.
    """
    found = await find(bus.connection, bus.topology, manifest_name(job_id, attempt))
    if found is None:
        raise JobNotFound(f"attempt {attempt} of job {job_id} has no manifest on the bus")
    if found.size > MAX_BYTES[Manifest]:
        raise InvalidMessage(f"{found.name} has {found.size} bytes, which no manifest has")
    content = b"".join([chunk async for chunk in read(bus.connection, bus.topology, found)])
    return content, decode(Manifest, content)


async def verify(
    bus: Bus, record: JobRecord, attempt: int, trusted: frozenset[str] | None
) -> AsyncIterator[Check]:
    """Hold an attempt's manifest against the record, its signature, the object store and this host's disks.

    With `trusted` public keys the signature has to be by one of them. Raises like `read_manifest`.
    """
    content, manifest = await read_manifest(bus, record.job_id, attempt)
    own = (manifest.job_id, manifest.attempt) == (record.job_id, attempt)
    words = f"it is of attempt {manifest.attempt} of job {manifest.job_id}"
    yield Check("manifest", "ok" if own else "differs", words)
    by_record = _against_record(record, attempt, hashlib.sha256(content).hexdigest())
    by_key = _against_signature(manifest, bus.topology.grammar.root, trusted)
    yield by_record
    yield by_key
    if "ok" not in (by_record.verdict, by_key.verdict):
        yield Check("vouched for", "differs", "neither the record nor a key vouches for this manifest")
    for each in manifest.artifacts:
        yield await _against_store(bus, each)
    for kind, disks in (("input", manifest.inputs), ("output", manifest.outputs)):
        for disk in disks:
            yield await anyio.to_thread.run_sync(_against_disk, f"{kind} {disk.path}", disk)


def _against_record(record: JobRecord, attempt: int, digest: str) -> Check:
    named = record.result.manifest_sha256 if record.result else None
    if record.result is None or record.result.retry_attempt + 1 != attempt or named is None:
        return Check("record", "unknown", f"the job's result names no manifest of attempt {attempt}")
    if named != digest:
        return Check("record", "differs", f"the job's result names SHA-256 {named}, and this is {digest}")
    return Check("record", "ok", f"SHA-256 {digest}, as the job's result says")


def _against_signature(manifest: Manifest, root: str, trusted: frozenset[str] | None) -> Check:
    if manifest.signature is None:
        verdict: Verdict = "unknown" if trusted is None else "differs"
        return Check("signature", verdict, "the manifest is not signed: its worker connects without a key")
    key = manifest.signature.key
    if not is_genuine(manifest, root):
        return Check("signature", "differs", f"it is not by {key} over this manifest")
    if trusted is None:
        return Check("signature", "unknown", f"by {key}; whose key that is, --keys says")
    if key not in trusted:
        return Check("signature", "differs", f"by {key}, which is not among the trusted keys")
    return Check("signature", "ok", f"by {key}, which is trusted")


async def _against_store(bus: Bus, kept: KeptObject) -> Check:
    found = await find(bus.connection, bus.topology, kept.name)
    if found is None:
        return Check(kept.name, "unknown", "it is not on the bus any more")
    try:
        seen = await _digest_of(bus, found)
    except (BusError, InvalidMessage) as error:
        return Check(kept.name, "differs", str(error))
    if seen != kept.sha256:
        return Check(kept.name, "differs", f"SHA-256 {seen}, and the manifest says {kept.sha256}")
    return Check(kept.name, "ok", f"{kept.size} bytes, SHA-256 {seen}")


async def _digest_of(bus: Bus, found: Artifact) -> str:
    seen = hashlib.sha256()
    async for chunk in read(bus.connection, bus.topology, found):
        seen.update(chunk)
    return seen.hexdigest()


def _against_disk(subject: str, disk: DiskFacts) -> Check:
    """A disk as it is here now; reads all of it where the manifest has a checksum."""
    try:
        descriptor = os.open(disk.path, _READ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path"
        return Check(subject, "unknown", f"it cannot be read here: {reason}")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Check(subject, "unknown", "what has the name here is no ordinary file")
        if disk.sha256 is None:
            return _by_size(subject, disk, status.st_size)
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
            seen = hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        os.close(descriptor)
    if seen != disk.sha256:
        return Check(subject, "differs", f"SHA-256 {seen}, and the manifest says {disk.sha256}")
    return Check(subject, "ok", f"SHA-256 {seen}")


def _by_size(subject: str, disk: DiskFacts, size: int) -> Check:
    if disk.file_bytes is not None and disk.file_bytes != size:
        return Check(subject, "differs", f"{size} bytes, and the manifest says {disk.file_bytes}")
    return Check(subject, "unknown", f"{size} bytes; the manifest has no checksum of it")
