"""`h2kbus artifacts`: what attempts have left is listed, fetched whole or not at all, and verified."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def job(local: Program, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A conversion that has ended, with a checksum of its result."""
    place = tmp_path_factory.mktemp("disk")
    image = place / "disk.img"
    image.write_bytes(bytes(range(256)) * 4096)
    words = ("--operation", "convert", "--image", image, "--output-dir", place / "out")
    return local("submit", *words, "--set", "output_checksum=true", "--wait").stdout.split()[0]


def test_all_of_them_are_listed(local: Program, job: str) -> None:
    lines = local("artifacts", job).stdout.splitlines()
    assert lines[0].split() == ["ATTEMPT", "NAME", "BYTES", "STORED", "SHA-256"]
    assert [each.split()[:2] for each in lines[1:]] == [["1", "log"], ["1", "report"], ["1", "manifest"]]


def test_list_for_programs_has_what_the_table_has(local: Program, job: str) -> None:
    told = [json.loads(each) for each in local("artifacts", job, "--json").stdout.splitlines()]
    assert [each["object"] for each in told] == [f"{job}/1/{name}" for name in ("log", "report", "manifest")]
    for each in told:
        content = local("artifacts", job, "--get", each["name"], "--output", "-").stdout.encode()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (each["size"], each["sha256"])


def test_artifact_is_fetched_into_a_file(local: Program, job: str) -> None:
    done = local("artifacts", job, "--get", "manifest")
    assert done.returncode == 0
    file = local.place / f"{job}.1.manifest.json"
    assert json.loads(file.read_text())["job_id"] == job
    file.unlink()


def test_file_that_is_there_is_not_replaced_unless_asked(local: Program, job: str, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.write_text("mine")
    done = local("artifacts", job, "--get", "log", "--output", target)
    assert (done.returncode, target.read_text()) == (2, "mine")
    assert "--force replaces it" in done.stderr
    assert local("artifacts", job, "--get", "log", "--output", target, "--force").returncode == 0
    assert "attempt 1 of convert" in target.read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("output", ["/nowhere/at/all", ".", "/"])
def test_place_where_nothing_can_be_written_is_said(local: Program, job: str, output: str) -> None:
    done = local("artifacts", job, "--get", "log", "--output", output)
    assert done.returncode == 2
    assert f"--output {output}" in done.stderr


@pytest.mark.parametrize("name", ["../log", "1/log", "log/", "..", "/etc/passwd", "LOG", "", "manifest.json"])
def test_name_that_is_none_is_refused(local: Program, job: str, name: str) -> None:
    done = local("artifacts", job, "--get", name)
    assert done.returncode == 2
    assert "log, report, manifest" in done.stderr


@pytest.mark.parametrize("words", [(), ("--get", "log"), ("--verify",)])
def test_unknown_job_is_said(local: Program, words: tuple[str, ...]) -> None:
    assert local("artifacts", "nobody", *words).returncode == 4


@pytest.mark.parametrize("words", [("--get", "log"), ("--verify",)])
def test_attempt_that_was_not_is_said(local: Program, job: str, words: tuple[str, ...]) -> None:
    done = local("artifacts", job, *words, "--attempt", "7")
    assert done.returncode == 4
    assert f"attempt 7 of job {job} has no" in done.stderr


def test_what_is_as_it_was_is_verified(local: Program, job: str) -> None:
    done = local("artifacts", job, "--verify", "--json")
    checks = {each["subject"]: each["verdict"] for each in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0
    [source] = [each for each in checks if each.startswith("input ")]
    [made] = [each for each in checks if each.startswith("output ")]
    assert checks == {
        "manifest": "ok", "record": "ok", "signature": "unknown", f"{job}/1/log": "ok",
        f"{job}/1/report": "ok", source: "unknown", made: "ok",
    }  # fmt: skip


def test_result_that_was_changed_is_found(local: Program, job: str, changed_result: Path) -> None:
    done = local("artifacts", job, "--verify")
    assert done.returncode == 1
    [line] = [each for each in done.stdout.splitlines() if "differs" in each]
    assert str(changed_result) in line


@pytest.fixture
def changed_result(local: Program, job: str) -> Iterator[Path]:
    manifest = json.loads(local("artifacts", job, "--get", "manifest", "--output", "-").stdout)
    file = Path(manifest["outputs"][0]["path"])
    before = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    yield file
    file.write_bytes(before)


def test_two_things_at_once_are_refused(local: Program, job: str) -> None:
    assert local("artifacts", job, "--get", "log", "--verify").returncode == 2
