"""status, watch, ls, cancel, retry, workers, lanes: what they print and how they end."""

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from subjects.codec import decode, encode
from subjects.events import ProgressEvent
from subjects.fleet import LaneAnnouncement, WorkerCapabilities
from subjects.record import JobRecord
from tests.conftest import Program, rehearsal

pytestmark = pytest.mark.slow


def submit(local: Program, place: Path, *words: str, **job: Any) -> None:
    file = place / "job.json"
    file.write_bytes(encode(rehearsal(**job)))
    assert local("submit", *words, file).returncode == 0


@pytest.fixture
def done_job(local: Program, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    job_id = f"jobs-{tmp_path.name}".replace("[", "-").replace("]", "")[:100]
    submit(local, tmp_path, "--wait", job_id=job_id)
    return job_id


def test_status_as_json_is_the_record(local: Program, done_job: str) -> None:
    record = decode(JobRecord, local("status", "--json", done_job).stdout.encode())
    assert (record.job_id, record.state) == (done_job, "COMPLETED")


def test_status_shows_the_audit_trail_to_people(local: Program, done_job: str) -> None:
    shown = local("status", done_job).stdout
    for state in ("CREATED", "VALIDATED", "QUEUED", "ASSIGNED", "RUNNING", "COMPLETED"):
        assert state in shown


def test_watch_as_json_is_the_events(local: Program, done_job: str) -> None:
    done = local("watch", "--json", done_job)
    events = [decode(ProgressEvent, line.encode()) for line in done.stdout.splitlines()]
    assert [event.state for event in events] == ["QUEUED", "RUNNING", "COMPLETED"]
    assert done.returncode == 0


def test_watch_of_a_failed_job_is_exit_1(local: Program, tmp_path: Path) -> None:
    submit(local, tmp_path, job_id="watch-fails", fail="TOOL_FAILED")
    assert local("watch", "watch-fails").returncode == 1


def test_ls_filters_by_state_and_time_and_number(local: Program, done_job: str, tmp_path: Path) -> None:
    listed = [json.loads(line) for line in local("ls", "--json", "--state", "completed").stdout.splitlines()]
    assert {record["state"] for record in listed} == {"COMPLETED"}
    assert done_job in [record["job_id"] for record in listed]
    assert local("ls", "--json", "--since", "2099-01-01T00:00:00Z").stdout == ""
    assert done_job in local("ls", "--since", "1h").stdout
    assert len(local("ls", "--json", "--limit", "1").stdout.splitlines()) == 1


def test_cancel_and_wait_shows_the_end(local: Program, tmp_path: Path) -> None:
    submit(local, tmp_path, job_id="to-cancel", seconds=50)
    done = local("cancel", "--wait", "--json", "to-cancel", "--reason", "not needed")
    assert json.loads(done.stdout)["state"] == "CANCELLED"


def test_retry_prints_the_new_id(local: Program, done_job: str) -> None:
    new_id = local("retry", done_job).stdout.strip()
    assert local("watch", new_id).returncode == 0
    assert json.loads(local("status", "--json", new_id).stdout)["parent"] == done_job


def test_workers_and_lanes_are_the_wire_structs(local: Program, done_job: str) -> None:
    [worker] = local("workers", "--json").stdout.splitlines()
    assert decode(WorkerCapabilities, worker.encode()).capabilities["op-rehearse"]
    lanes = [decode(LaneAnnouncement, line.encode()) for line in local("lanes", "--json").stdout.splitlines()]
    assert "op-rehearse" in [lane.lane for lane in lanes]


def test_capabilities_say_what_to_install(local: Program) -> None:
    found = decode(WorkerCapabilities, local("capabilities", "--json").stdout.encode())
    lacking = {token for token, proven in found.capabilities.items() if not proven}
    assert found.advice.keys() <= lacking
    table = local("capabilities").stdout
    assert "TO MEND IT" in table
    assert all(words.split()[0] in table for words in found.advice.values())


def test_capabilities_need_no_bus(local: Program) -> None:
    found = decode(
        WorkerCapabilities, local("capabilities", "--json", "--url", "nats://127.0.0.1:1").stdout.encode()
    )
    assert found.capabilities["qemu-img"]
    assert "qemu-img version" in found.evidence["qemu-img"]


def test_doctor_is_content_with_a_running_bus(local: Program, done_job: str) -> None:
    done = local("doctor", "--json")
    checks = {check["subject"]: check for check in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0
    assert [checks[name]["verdict"] for name in ("bus", "streams", "scheduler", "workers")] == ["ok"] * 4


def test_doctor_says_what_is_missing_at_a_new_server(program: Program) -> None:
    done = program("doctor", "--json")
    checks = {check["subject"]: check for check in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1
    assert checks["streams"]["mend"] == checks["scheduler"]["mend"] == "h2kbus scheduler"


def test_schema_prints_lists_and_writes(local: Program, tmp_path: Path) -> None:
    names = local("schema").stdout.split()
    assert "asyncapi.json" in names
    assert json.loads(local("schema", "job-spec").stdout)["title"] == "JobSpec"
    local("schema", "--output", tmp_path / "schemas")
    assert sorted(each.name for each in (tmp_path / "schemas").iterdir()) == sorted(names)


def test_shared_options_may_stand_anywhere(local: Program) -> None:
    url = local.environment["H2KBUS_URL"]
    before = local("--json", "--url", url, "lanes")
    after = local("lanes", "--url", url, "--json")
    shown = [[json.loads(line)["consumer"] for line in done.stdout.splitlines()] for done in (before, after)]
    assert shown[0] == shown[1] != []


def test_nats_context_is_read(local: Program, tmp_path: Path) -> None:
    contexts = Path(local.environment["HOME"]) / ".config" / "nats" / "context"
    contexts.mkdir(parents=True, exist_ok=True)
    url = local.environment["H2KBUS_URL"]
    (contexts / "mine.json").write_bytes(msgspec.json.encode({"url": url}))
    stripped = {name: value for name, value in local.environment.items() if name != "H2KBUS_URL"}
    assert Program(stripped, tmp_path)("lanes", "--context", "mine").returncode == 0


def test_reader_that_has_seen_enough_ends_it_quietly(local: Program, done_job: str) -> None:
    argv = " ".join(local.argv("schema", "job-spec"))
    done = subprocess.run(
        ["/bin/sh", "-c", f"{argv} | head -n 1"], check=False, env=local.environment, capture_output=True,
        cwd=local.place, timeout=30,
    )  # fmt: skip
    assert done.stdout == b"{\n"
    assert done.stderr == b""


def test_version_and_help(local: Program) -> None:
    assert local("--version").stdout.startswith("h2kbus ")
    shown = local("--help").stdout
    for command in ("up", "submit", "run", "status", "watch", "ls", "cancel", "retry", "doctor", "bench"):
        assert f"  {command} " in shown
