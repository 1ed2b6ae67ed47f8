"""`h2kbus explain`: who could run a job, and what the others lack."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from subjects.codec import encode
from subjects.spec import CapabilityRequirements
from tests.conftest import REHEARSE, Program, rehearsal

pytestmark = pytest.mark.slow

HUGE = CapabilityRequirements(min_memory_gb=900_000)


def job(place: Path, job_id: str | None = None, **fields: Any) -> Path:
    file = place / "job.json"
    file.write_bytes(encode(msgspec.structs.replace(rehearsal(job_id=job_id), **fields)))
    return file


def explained(local: Program, target: object) -> dict[str, Any]:
    done = local("explain", target, "--operations", REHEARSE, "--json")
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=dict[str, Any])


def test_job_in_a_file_is_explained_before_it_is_handed_in(local: Program, tmp_path: Path) -> None:
    found = explained(local, job(tmp_path))
    assert (found["lane"], found["priority"]) == ("op-rehearse", 5)
    assert [each["lacks"] for each in found["candidates"]] == [[]]
    assert "state" not in found


def test_every_need_that_nobody_meets_is_named(local: Program, tmp_path: Path) -> None:
    found = explained(local, job(tmp_path, pool="nowhere", capability_requirements=HUGE))
    (only,) = found["candidates"]
    assert only["lacks"][0] == "is in the pool default, not in nowhere"
    assert only["lacks"][1].endswith("GB of memory, not 900000")


def test_job_that_waits_is_explained_by_its_id(local: Program, tmp_path: Path) -> None:
    job_id = f"explain-{tmp_path.name}"
    assert local("submit", job(tmp_path, job_id, pool="nowhere")).returncode == 0
    done = local("explain", job_id)
    assert done.stdout.splitlines()[:2] == [
        f"{job_id}: no live worker can run it",
        "lane:  nowhere/op-rehearse/5",
    ]
    assert "is in the pool default, not in nowhere" in done.stdout
    local("cancel", job_id)
    assert local("explain", job_id).stdout.startswith(f"{job_id}: it is CANCELLED\n")


def test_answer_for_people_counts_the_free_slots(local: Program, tmp_path: Path) -> None:
    done = local("explain", job(tmp_path), "--operations", REHEARSE)
    assert done.stdout.startswith("the job: 1 worker can run it, with ")


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("no-such-job", 4, "no-such-job"),
        ("no/such/file.json", 2, "no/such/file.json"),
    ],
)
def test_wrong_target_is_one_line(local: Program, target: str, code: int, words: str) -> None:
    done = local("explain", target)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_invalid_job_is_told_with_its_field(local: Program, tmp_path: Path) -> None:
    file = job(tmp_path, operation="frobnicate")
    done = local("explain", file)
    assert done.returncode == 2
    assert "$.operation" in done.stderr
