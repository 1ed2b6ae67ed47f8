"""The manifest of an attempt says what an auditor needs, and nothing that is secret."""

import hashlib
import json
import subprocess
from pathlib import Path

import msgspec
import pytest
from jsonschema import Draft202012Validator

from h2kbus import __version__
from h2kbus.artifacts import find, log_name, manifest_name, report_name
from h2kbus.client import Bus
from h2kbus.errors import ErrorCode
from h2kbus.signing import Signer, is_genuine, new_seed
from subjects.codec import decode
from subjects.manifest import Manifest
from subjects.record import JobRecord
from subjects.schema import json_schema
from subjects.states import State
from tests.conftest import Fleet
from tests.workers.test_artifacts import ended, kept, result_of, uploading

pytestmark = pytest.mark.anyio


async def manifest_of(bus: Bus, record: JobRecord, attempt: int = 1) -> Manifest:
    content = await kept(bus, manifest_name(record.job_id, attempt))
    assert content is not None
    Draft202012Validator(json_schema(Manifest)).validate(json.loads(content))
    return decode(Manifest, content)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 4096)
    return image


async def converted(bus: Bus, disk: Path, **parameters: object) -> JobRecord:
    spec = uploading(disk.parent / "out", operation="convert", image=str(disk), **parameters)
    checksum = hashlib.sha256(disk.read_bytes()).hexdigest()
    return await ended(
        bus, msgspec.structs.replace(spec, image=msgspec.structs.replace(spec.image, checksum=checksum))
    )


async def test_manifest_of_a_conversion_names_what_went_in_and_what_came_out(
    bus: Bus, running: Fleet, disk: Path
) -> None:
    record = await converted(bus, disk)
    told = await manifest_of(bus, record)
    [source], [made] = told.inputs, told.outputs
    assert (source.path, source.format, source.file_bytes) == (str(disk), "raw", 1 << 20)
    assert source.sha256 == hashlib.sha256(disk.read_bytes()).hexdigest()
    output = Path(made.path)
    assert str(output) == result_of(record).outputs.fixed_image
    assert (made.format, made.file_bytes, made.virtual_size) == ("qcow2", output.stat().st_size, 1 << 20)
    assert made.sha256 is None, "nobody asked to have the result read once more"
    assert any(each.startswith("qemu-img convert") for each in told.commands)
    version = subprocess.run(["qemu-img", "--version"], check=True, capture_output=True, text=True).stdout
    assert told.tools["qemu-img"] in version
    assert (told.state, told.error_code, told.worker_id) == (State.COMPLETED, None, "worker-1")
    assert (told.h2kbus_version, told.submitted_by) == (__version__, "tester")
    assert told.submitted_at == record.created_at
    assert told.submitted_at <= told.started_at <= told.ended_at
    assert told.spec == record.spec


async def test_checksum_of_the_result_is_told_if_the_job_asks_for_it(
    bus: Bus, running: Fleet, disk: Path
) -> None:
    told = await manifest_of(bus, await converted(bus, disk, output_checksum=True))
    [made] = told.outputs
    assert made.sha256 == hashlib.sha256(Path(made.path).read_bytes()).hexdigest()


async def test_record_vouches_for_the_manifest_and_the_manifest_for_log_and_report(
    bus: Bus, running: Fleet, disk: Path
) -> None:
    record = await converted(bus, disk)
    content = await kept(bus, manifest_name(record.job_id, 1)) or b""
    assert result_of(record).manifest_sha256 == hashlib.sha256(content).hexdigest()
    told = await manifest_of(bus, record)
    names = [log_name(record.job_id, 1), report_name(record.job_id, 1)]
    assert [each.name for each in told.artifacts] == names
    for each in told.artifacts:
        whole = await kept(bus, each.name) or b""
        assert (each.size, each.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())


async def test_manifest_of_an_attempt_that_failed_says_why_and_what_had_run(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    spec = uploading(tmp_path, flood_mib=1, fail="IMAGE_CORRUPT")
    record = await ended(bus, spec)
    told = await manifest_of(bus, record)
    assert (told.state, told.error_code) == (State.FAILED, ErrorCode.IMAGE_CORRUPT)
    assert [each.split()[0] for each in told.commands] == ["/usr/bin/python3"]
    assert told.outputs == ()


@pytest.mark.slow
async def test_each_attempt_has_a_manifest(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    spec = uploading(tmp_path, log_lines=["hello"], fail="TOOL_FAILED", fail_until_attempt=2,
                     policy={"retry_count": 1})  # fmt: skip
    record = await ended(bus, spec)
    states = [(await manifest_of(bus, record, attempt)).state for attempt in (1, 2)]
    assert states == [State.RETRYING, State.COMPLETED]
    tokens = [(await manifest_of(bus, record, attempt)).token for attempt in (1, 2)]
    assert tokens == sorted(set(tokens))


async def test_manifest_of_a_worker_with_a_key_is_signed_by_it(
    bus: Bus, fleet: Fleet, tmp_path: Path
) -> None:
    signer = Signer(new_seed())
    await fleet.scheduler()
    await fleet.worker(signer=signer)
    told = await manifest_of(bus, await ended(bus, uploading(tmp_path, log_lines=["hello"])))
    assert told.signature is not None
    assert told.signature.key == signer.public_key
    root = bus.topology.grammar.root
    assert is_genuine(told, root)
    assert not is_genuine(told, f"{root}x")
    assert not is_genuine(msgspec.structs.replace(told, worker_id="another"), root)


async def test_manifest_of_a_signed_job_can_be_signed(bus: Bus, fleet: Fleet, tmp_path: Path) -> None:
    signer = Signer(new_seed())
    bus.signer = Signer(new_seed())
    await fleet.scheduler()
    await fleet.worker(signer=signer)
    told = await manifest_of(bus, await ended(bus, uploading(tmp_path, log_lines=["hello"])))
    assert told.spec.signature is not None
    assert is_genuine(told, bus.topology.grammar.root)


async def test_secret_of_a_job_is_in_none_of_its_artifacts(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    secret = "correct horse battery"
    spec = uploading(
        tmp_path, vc_password=secret, fail="TOOL_FAILED",
        log_lines=[f"opening with {secret}", "url: https://root:letmein@esx/x"],
    )  # fmt: skip
    record = await ended(bus, spec)
    for name in (log_name, manifest_name):
        content = await kept(bus, name(record.job_id, 1)) or b""
        assert content
        assert secret.encode() not in content
        assert b"letmein" not in content
    assert (await manifest_of(bus, record)).spec.parameters["vc_password"] == "***"


async def test_job_without_a_log_has_no_manifest(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    record = await ended(bus, uploading(tmp_path))
    assert result_of(record).manifest_sha256 is None
    assert await find(bus.connection, bus.topology, manifest_name(record.job_id, 1)) is None
