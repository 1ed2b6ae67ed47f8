"""`h2kbus submit`: what is accepted, what is printed, and how it ends."""

import json
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from subjects.codec import encode
from tests.conftest import Program, rehearsal

pytestmark = pytest.mark.slow


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def job_file(place: Path, name: str = "job.json", **more: Any) -> Path:
    file = place / name
    file.write_bytes(encode(rehearsal(**more)))
    return file


def test_prints_the_job_id_alone_on_stdout(local: Program, tmp_path: Path) -> None:
    done = local("submit", job_file(tmp_path, job_id="printed"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "printed\n", "")


def test_json_prints_the_record_as_it_stands_on_the_wire(local: Program, tmp_path: Path) -> None:
    [record] = lines(local("submit", "--json", job_file(tmp_path, job_id="as-json")).stdout)
    assert record["job_id"] == "as-json"
    assert record["spec"]["audit"]["requested_by"] == "tester"


def test_wait_follows_to_the_end(local: Program, tmp_path: Path) -> None:
    done = local("submit", "--wait", job_file(tmp_path, job_id="waited", seconds=0.3))
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["waited", "waited  COMPLETED"]
    assert "PROGRESSING" in done.stderr


def test_wait_with_json_prints_the_final_record_only(local: Program, tmp_path: Path) -> None:
    done = local("submit", "--wait", "--json", job_file(tmp_path))
    [record] = lines(done.stdout)
    assert record["state"] == "COMPLETED"


def test_wait_for_a_job_that_fails_is_exit_1(local: Program, tmp_path: Path) -> None:
    done = local("submit", "--wait", job_file(tmp_path, job_id="fails", fail="TOOL_FAILED"))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "fails  FAILED  TOOL_FAILED: made up"


def test_options_describe_a_job(local: Program) -> None:
    done = local(
        "submit", "--json", "--operation", "rehearse", "--image", "disk.img", "--output-dir", "out",
        "--set", "seconds=0.1", "--set", "mark=null", "--priority", "2", "--tag", "team=a",
        "--job-id", "options",
    )  # fmt: skip
    [record] = lines(done.stdout)
    spec = record["spec"]
    assert spec["parameters"] == {"seconds": 0.1, "mark": None}
    assert spec["image"]["path"] == str(local.place / "disk.img")
    assert spec["artifacts"]["output_path"] == str(local.place / "out")
    assert (record["priority"], spec["audit"]["tags"]) == (2, {"team": "a"})


def test_standard_input_is_read_as_json_lines(local: Program) -> None:
    text = b"\n".join(encode(rehearsal(job_id=f"stdin-{number}")) for number in range(3))
    done = local("submit", "-", stdin=text)
    assert done.stdout.split() == ["stdin-0", "stdin-1", "stdin-2"]


def test_yaml_and_several_files_are_read(local: Program, tmp_path: Path) -> None:
    document = msgspec.json.decode(encode(rehearsal(job_id="from-yaml")))
    file = tmp_path / "job.yaml"
    file.write_bytes(msgspec.yaml.encode(document))
    done = local("submit", file, job_file(tmp_path, job_id="from-json"))
    assert done.stdout.split() == ["from-yaml", "from-json"]


def test_unknown_fields_are_named_and_the_job_is_accepted(local: Program, tmp_path: Path) -> None:
    document = {**msgspec.json.decode(encode(rehearsal())), "colour": "red"}
    file = tmp_path / "job.json"
    file.write_bytes(encode(document))
    done = local("submit", file)
    assert done.returncode == 0
    assert "colour" in done.stderr


@pytest.mark.slow
def test_hundreds_of_lines_are_pipelined(local: Program, tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_bytes(b"\n".join(encode(rehearsal(job_id=f"many-{number}")) for number in range(500)))
    done = local("submit", "--wait", "--json", file)
    assert done.returncode == 0
    states = {record["job_id"]: record["state"] for record in lines(done.stdout)}
    assert len(states) == 500
    assert set(states.values()) == {"COMPLETED"}


def test_the_same_job_again_changes_nothing(local: Program, tmp_path: Path) -> None:
    file = job_file(tmp_path, job_id="twice")
    local("submit", "--wait", file)
    before = json.loads(local("status", "--json", "twice").stdout)
    done = local("submit", file)
    assert (done.returncode, done.stdout) == (0, "twice\n")
    assert json.loads(local("status", "--json", "twice").stdout) == before


def test_another_job_under_a_taken_id_is_refused(local: Program, tmp_path: Path) -> None:
    local("submit", "--wait", job_file(tmp_path, job_id="taken"))
    done = local("submit", job_file(tmp_path, job_id="taken", seconds=1))
    assert done.returncode == 2
    assert "DUPLICATE_JOB: another job has the id taken" in done.stderr


def test_without_a_scheduler_the_job_is_accepted_and_waits(program: Program, tmp_path: Path) -> None:
    with program.started("scheduler") as process:
        assert process.stderr is not None
        process.stderr.readline()
    done = program("submit", job_file(tmp_path, job_id="waits"))
    assert (done.returncode, done.stdout) == (0, "waits\n")
    assert "not read by a scheduler yet" in done.stderr


def test_a_server_that_no_scheduler_has_seen_is_exit_3(program: Program, tmp_path: Path) -> None:
    done = program("submit", job_file(tmp_path))
    assert done.returncode == 3
    assert "NOT_PROVISIONED" in done.stderr


def test_ctrl_c_while_waiting_leaves_the_job_alone(local: Program, tmp_path: Path) -> None:
    with local.started("submit", "--wait", job_file(tmp_path, job_id="left", seconds=60)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "left\n"
        assert process.stderr is not None
        assert any("RUNNING" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert "Traceback" not in process.stderr.read()
    assert json.loads(local("status", "left", "--json").stdout)["result"] is None
    assert local("cancel", "left").returncode == 0


def test_policy_of_a_job_comes_from_options(local: Program) -> None:
    options = ("--policy", "retry_count=2", "--policy", "not_before=2020-01-01T00:00:00Z", "--priority", "3")
    words = ("--operation", "rehearse", "--image", "/x", "--output-dir", "/y", *options)
    done = local("submit", "--json", "--wait", *words)
    policy = json.loads(done.stdout)["spec"]["execution_policy"]
    assert (policy["retry_count"], policy["priority"]) == (2, 3)
    assert policy["not_before"] == "2020-01-01T00:00:00Z"


def test_policy_that_does_not_exist_is_refused(local: Program) -> None:
    words = ("--operation", "rehearse", "--image", "/x", "--output-dir", "/y", "--policy", "retries=2")
    done = local("submit", *words)
    assert done.returncode == 2
    assert "'retries' is not known; known: retry_count" in done.stderr


def test_job_whose_deadline_has_passed_fails_and_is_no_usage_error(local: Program) -> None:
    words = ("--operation", "rehearse", "--image", "/x", "--output-dir", "/y")
    done = local("submit", "--wait", *words, "--policy", "deadline=2020-01-01T00:00:00Z")
    assert done.returncode == 1
    assert "DEADLINE_EXCEEDED" in done.stdout
