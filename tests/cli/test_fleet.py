"""The fleet from the command line: who lives, what waits, and what operators can tell a worker."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from subjects.codec import encode
from tests.conftest import Program, rehearsal

pytestmark = pytest.mark.slow


def worker_of(local: Program) -> dict[str, Any]:
    [line] = local("workers", "--json").stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def limited(place: Path, job_id: str, label: str) -> Path:
    file = place / "job.json"
    file.write_bytes(encode(msgspec.structs.replace(rehearsal(job_id=job_id), limit={label: 2})))
    return file


def test_workers_are_shown_with_state_and_age(local: Program) -> None:
    titles, row = local("workers").stdout.splitlines()
    assert titles.split() == [
        "WORKER",
        "POOL",
        "STATE",
        "SLOTS",
        "RUNNING",
        "SEEN",
        "VERSION",
        "LEVEL",
        "CAPABILITIES",
    ]
    assert " ready " in row
    assert " s ago " in row


def test_worker_is_cordoned_and_uncordoned(local: Program) -> None:
    worker_id = worker_of(local)["worker_id"]
    done = local("cordon", worker_id, "--reason", "new disk")
    assert (done.returncode, done.stdout) == (0, f"{worker_id} takes no new jobs\n")
    assert worker_of(local)["cordoned"]
    assert " cordoned " in local("workers").stdout
    done = local("uncordon", worker_id)
    assert (done.returncode, done.stdout) == (0, f"{worker_id} takes jobs again\n")
    assert not worker_of(local)["cordoned"]


@pytest.mark.parametrize("command", ["cordon", "drain"])
def test_order_to_nobody_is_refused_with_what_to_do(local: Program, command: str) -> None:
    done = local(command, "nobody")
    assert done.returncode == 2
    assert "WORKER_NOT_FOUND: no live worker nobody. List the live workers" in done.stderr


def test_worker_that_is_told_to_drain_ends(program: Program) -> None:
    with program.started("scheduler"), program.started("worker", "--id", "w1") as process:
        assert process.stderr is not None
        assert any("worker w1 is ready" in line for line in process.stderr)
        assert program("drain", "w1").stdout == "w1 drains\n"
        assert process.wait(20) == 0
        assert program("workers").stdout.count("\n") == 1


def test_lanes_show_how_full_they_are(local: Program, tmp_path: Path) -> None:
    assert local("submit", "--wait", limited(tmp_path, "lanes-1", "nobody-waits")).returncode == 0
    titles, *rows = local("lanes").stdout.splitlines()
    assert titles.split() == ["POOL", "LANE", "PRIORITY", "WAITING", "RUNNING", "OLDEST", "PARKED"]
    assert any(row.split()[:4] == ["default", "op-rehearse", "5", "0"] for row in rows)


def test_ceiling_is_set_shown_and_cleared(local: Program) -> None:
    assert local("limit", "source-host/esx-07", "4").stdout == "source-host/esx-07: at most 4 at once\n"
    assert ["source-host/esx-07", "4", "0", "-"] in [
        line.split() for line in local("limits").stdout.splitlines()
    ]
    assert local("limit", "source-host/esx-07", "--clear").stdout == "source-host/esx-07: no ceiling\n"
    assert "source-host/esx-07" not in local("limits", "--json").stdout


def test_job_is_submitted_with_a_limit(local: Program) -> None:
    words = ("--operation", "rehearse", "--image", "/x", "--output-dir", "/y", "--limit", "host=a/esx-07=3")
    done = local("submit", "--wait", "--json", *words)
    assert json.loads(done.stdout)["spec"]["limit"] == {"host=a/esx-07": 3}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("limit", "a b", "3"), "$"),
        (("limit", "esx-07"), "give either a number or --clear"),
        (("limit", "esx-07", "3", "--clear"), "give either a number or --clear"),
        (("limit", "esx-07", "0"), "greater than or equal to 1"),
        (
            ("submit", "--operation", "inspect", "--image", "/x", "--output-dir", "/y", "--limit", "esx"),
            "write it as label=number",
        ),
        (("worker", "--capability", "nbd", "--no-capability", "nbd"), "nbd is both on and off"),
    ],
    ids=["label", "nothing", "both", "zero", "no number", "on and off"],
)
def test_bad_words_are_refused(local: Program, words: tuple[str, ...], problem: str) -> None:
    done = local(*words)
    assert done.returncode == 2
    assert problem in done.stderr


def test_setup_shows_every_stream_and_its_copies(local: Program) -> None:
    rows = [line.split() for line in local("setup").stdout.splitlines()[1:]]
    assert ["H2K_JOBS", "1/1"] in [row[:2] for row in rows]
    assert {row[-1] for row in rows} == {"-"}


def test_copies_that_a_single_server_cannot_keep_are_refused(local: Program) -> None:
    done = local("setup", "--replicas", "3")
    assert done.returncode == 3
    assert "replicas" in done.stderr


def test_job_that_nobody_can_run_says_so_in_status_and_ls(local: Program, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(rehearsal(job_id="unserved"), pool="nowhere")
    (tmp_path / "job.json").write_bytes(encode(spec))
    assert local("submit", tmp_path / "job.json").returncode == 0
    words = "no live worker is in the pool nowhere"
    assert words in local("status", "unserved").stdout
    assert words in local("ls", "--state", "queued").stdout
    local("cancel", "unserved")
