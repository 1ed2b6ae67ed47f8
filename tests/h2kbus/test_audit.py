"""A manifest, an artifact or a disk that is not what it was is found, by whoever asks."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from h2kbus.artifacts import log_name, manifest_name, put
from h2kbus.audit import Verdict, read_manifest, verify
from h2kbus.client import Bus
from h2kbus.errors import InvalidMessage, JobNotFound
from h2kbus.signing import Signer, new_seed
from subjects.codec import encode
from subjects.manifest import DiskFacts, Manifest
from subjects.record import JobRecord
from tests.conftest import Fleet
from tests.workers.test_artifacts import ended, uploading

pytestmark = pytest.mark.anyio

WORKER, STRANGER = Signer(new_seed()), Signer(new_seed())
TRUSTED = frozenset({WORKER.public_key})


async def verdicts(
    bus: Bus, record: JobRecord, trusted: frozenset[str] | None = TRUSTED, attempt: int = 1
) -> Mapping[str, Verdict]:
    return {each.subject: each.verdict async for each in verify(bus, record, attempt, trusted)}


async def stored(bus: Bus, manifest: Manifest, attempt: int = 1) -> None:
    """As whoever may write artifacts does it: a name is looked up by its newest description."""
    await put(bus.connection, bus.topology, manifest_name(manifest.job_id, attempt), encode(manifest))


@pytest.fixture
async def record(bus: Bus, fleet: Fleet, tmp_path: Path) -> JobRecord:
    """Of a job that has ended on a worker with a key."""
    await fleet.scheduler()
    await fleet.worker(signer=WORKER)
    return await ended(bus, uploading(tmp_path, log_lines=["hello"]))


async def test_everything_as_it_was_is_in_order(bus: Bus, record: JobRecord) -> None:
    found = await verdicts(bus, record)
    told = {key: value for key, value in found.items() if not key.startswith("input")}
    assert told == dict.fromkeys(("manifest", "record", "signature", log_name(record.job_id, 1)), "ok")


async def test_signature_by_another_key_is_not_enough(bus: Bus, record: JobRecord) -> None:
    found = await verdicts(bus, record, frozenset({STRANGER.public_key}))
    assert (found["signature"], found["record"]) == ("differs", "ok")


async def test_signature_by_a_key_that_nobody_named_is_unknown(bus: Bus, record: JobRecord) -> None:
    assert (await verdicts(bus, record, None))["signature"] == "unknown"


async def test_manifest_that_was_changed_is_neither_the_records_nor_the_keys(
    bus: Bus, record: JobRecord
) -> None:
    _, manifest = await read_manifest(bus, record.job_id, 1)
    await stored(bus, msgspec.structs.replace(manifest, host="another"))
    found = await verdicts(bus, record)
    assert (found["signature"], found["record"], found["vouched for"]) == ("differs",) * 3


async def test_manifest_that_was_changed_and_signed_by_a_stranger_is_found(
    bus: Bus, record: JobRecord
) -> None:
    _, manifest = await read_manifest(bus, record.job_id, 1)
    forged = STRANGER.sign_manifest(msgspec.structs.replace(manifest, host="another"), bus.grammar.root)
    await stored(bus, forged)
    found = await verdicts(bus, record)
    assert (found["signature"], found["record"]) == ("differs", "differs")


async def test_manifest_of_another_job_is_found(bus: Bus, record: JobRecord) -> None:
    _, manifest = await read_manifest(bus, record.job_id, 1)
    other = msgspec.structs.replace(manifest, job_id="another")
    name = manifest_name(record.job_id, 1)
    await put(bus.connection, bus.topology, name, encode(WORKER.sign_manifest(other, bus.grammar.root)))
    found = await verdicts(bus, record)
    assert (found["manifest"], found["signature"]) == ("differs", "ok")


async def test_unsigned_manifest_that_no_record_names_is_vouched_for_by_nobody(
    bus: Bus, record: JobRecord
) -> None:
    _, manifest = await read_manifest(bus, record.job_id, 1)
    await stored(bus, msgspec.structs.replace(manifest, attempt=2, signature=None), attempt=2)
    found = await verdicts(bus, record, None, attempt=2)
    assert (found["record"], found["signature"], found["vouched for"]) == ("unknown", "unknown", "differs")


async def test_log_that_was_replaced_is_found(bus: Bus, record: JobRecord) -> None:
    await put(bus.connection, bus.topology, log_name(record.job_id, 1), b"nothing happened\n")
    assert (await verdicts(bus, record))[log_name(record.job_id, 1)] == "differs"


async def test_manifest_that_is_none_is_said_to_be_none(bus: Bus, record: JobRecord) -> None:
    await put(bus.connection, bus.topology, manifest_name(record.job_id, 1), b'{"job_id": 7}')
    with pytest.raises(InvalidMessage):
        await verdicts(bus, record)


async def test_attempt_without_a_manifest_is_said_to_have_none(bus: Bus, record: JobRecord) -> None:
    with pytest.raises(JobNotFound, match="attempt 2"):
        await verdicts(bus, record, attempt=2)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda disk: None, "ok"),
        (lambda disk: disk.write_bytes(b"other"), "differs"),
        (Path.unlink, "unknown"),
        (lambda disk: (disk.unlink(), disk.mkdir()), "unknown"),
    ],
    ids=["as it was", "changed", "gone", "a directory"],
)
async def test_disk_on_this_host_is_held_against_the_manifest(
    bus: Bus, record: JobRecord, tmp_path: Path, change: Callable[[Path], object], verdict: str
) -> None:
    disk = tmp_path / "made.img"
    disk.write_bytes(b"made")
    _, manifest = await read_manifest(bus, record.job_id, 1)
    outputs = (DiskFacts(path=str(disk), sha256=sha256(b"made").hexdigest()),)
    await stored(bus, msgspec.structs.replace(manifest, outputs=outputs))
    change(disk)
    assert (await verdicts(bus, record))[f"output {disk}"] == verdict
