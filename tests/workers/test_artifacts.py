"""Logs and reports of jobs are kept in the fleet's object store."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from h2kbus.artifacts import find, log_name, read, report_name
from h2kbus.client import Bus
from subjects.codec import encode
from subjects.record import JobRecord
from subjects.result import JobResult
from subjects.spec import JobSpec
from subjects.states import State
from tests.conftest import Fleet, rehearsal
from workers.artifacts import REPORT_BYTES

pytestmark = pytest.mark.anyio


def uploading(output: Path, **more: Any) -> JobSpec:
    """A rehearsal whose log is kept."""
    spec = rehearsal(output=str(output), **more)
    return msgspec.structs.replace(spec, artifacts=msgspec.structs.replace(spec.artifacts, log_upload=True))


async def ended(bus: Bus, spec: JobSpec) -> JobRecord:
    return await bus.result(await bus.submit(spec))


def result_of(record: JobRecord) -> JobResult:
    assert record.result is not None
    return record.result


async def kept(bus: Bus, name: str) -> bytes | None:
    """What is stored under a name."""
    found = await find(bus.connection, bus.topology, name)
    if found is None:
        return None
    return b"".join([chunk async for chunk in read(bus.connection, bus.topology, found)])


async def test_log_outlives_the_directory_that_it_was_written_to(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    record = await ended(bus, uploading(tmp_path, publish=True))
    assert result_of(record).warnings == ()
    store = await bus.connection.nats.jetstream().object_store(bus.topology.artifacts_store)
    found = await store.get(log_name(record.job_id, 1))
    assert b"attempt 1 of rehearse" in (found.data or b"")


async def test_report_is_kept_as_it_is_beside_the_results(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 4096)
    spec = uploading(tmp_path / "out", operation="convert", image=str(image))
    record = await ended(bus, spec)
    path = result_of(record).outputs.report
    assert path is not None
    assert await kept(bus, report_name(record.job_id, 1)) == Path(path).read_bytes()


@pytest.mark.slow
async def test_each_attempt_has_a_log_of_its_own(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    spec = uploading(tmp_path, log_lines=["hello"], fail="TOOL_FAILED", fail_until_attempt=2,
                     policy={"retry_count": 1})  # fmt: skip
    record = await ended(bus, spec)
    assert (record.state, record.attempt) == (State.COMPLETED, 2)
    for attempt in (1, 2):
        text = (await kept(bus, log_name(record.job_id, attempt)) or b"").decode()
        assert [f"attempt {each} of rehearse" in text for each in (1, 2)] == [attempt == 1, attempt == 2]


async def test_attempt_that_failed_has_a_log_and_no_report(bus: Bus, running: Fleet, tmp_path: Path) -> None:
    record = await ended(bus, uploading(tmp_path, log_lines=["so far"], fail="IMAGE_CORRUPT"))
    assert record.state is State.FAILED
    assert b"so far" in (await kept(bus, log_name(record.job_id, 1)) or b"")
    assert await kept(bus, report_name(record.job_id, 1)) is None


async def test_report_that_is_too_large_is_left_out_with_a_warning(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    record = await ended(bus, uploading(tmp_path, report_bytes=REPORT_BYTES + 1))
    assert record.state is State.COMPLETED
    [warning] = result_of(record).warnings
    assert f"at most {REPORT_BYTES} are kept" in warning
    assert await kept(bus, report_name(record.job_id, 1)) is None


async def test_job_that_wants_no_upload_leaves_nothing_on_the_bus(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    await ended(bus, rehearsal(output=str(tmp_path), report_bytes=10))
    info = await bus.connection.api(f"STREAM.INFO.OBJ_{bus.topology.artifacts_store}")
    assert info["state"]["messages"] == 0


async def test_job_without_a_workplace_leaves_nothing_on_the_bus(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    await ended(bus, uploading(tmp_path))
    info = await bus.connection.api(f"STREAM.INFO.OBJ_{bus.topology.artifacts_store}")
    assert info["state"]["messages"] == 0


async def test_secret_of_a_job_is_in_nothing_that_its_end_says(
    bus: Bus, running: Fleet, tmp_path: Path
) -> None:
    """The specification itself has to have it: the worker needs it."""
    spec = uploading(tmp_path, vc_password="correct horse", quote=" correct horse and https://a:letmein@b")
    for each in (spec, msgspec.structs.replace(spec, parameters={**spec.parameters, "fail": "TOOL_FAILED"})):
        record = await ended(bus, each)
        said = encode(msgspec.structs.replace(record, spec=None)).decode()
        assert "made up *** and" in said or "quoted  *** and" in said
        assert "correct horse" not in said
        assert "letmein" not in said
        events = [encode(event).decode() async for event in bus.watch(record.job_id)]
        assert not any("letmein" in event for event in events)
