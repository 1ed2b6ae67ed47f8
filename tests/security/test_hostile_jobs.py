"""Hostile images over a real bus: each class is refused by its code, and the worker lives on."""

import json
from pathlib import Path

import pytest

from h2kbus.errors import ErrorCode
from tests.conftest import Program
from tests.workers.hostile import Maker
from tests.workers.test_hostile import CASES

FIRST = [
    pytest.param(cases[0][1], cases[0][2], id=f"{number}: {cases[0][0]}") for number, cases in CASES.items()
]
"""One of each class; `tests/workers/test_hostile.py` has all of them."""


def convert(program: Program, image: Path, out: Path) -> tuple[int, dict[str, object], str]:
    done = program(
        "submit", "--operation", "convert", "--image", image, "--output-dir", out, "--wait", "--json"
    )
    record = json.loads(done.stdout)
    return done.returncode, record["result"]["error"] or {}, record["worker_id"]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "code"), FIRST)
def test_hostile_image_is_refused_with_its_code_and_the_worker_goes_on(
    local: Program, raw_disk: Path, vmdk: Path, tmp_path: Path, make: Maker, code: ErrorCode
) -> None:
    (tmp_path / "base.vmdk").symlink_to(vmdk)
    out = tmp_path / "out"
    status, error, worker = convert(local, make(tmp_path, raw_disk), out)
    assert (status, error["code"]) == (1, code)
    assert {each.suffix for each in out.iterdir()} <= {".log"}
    status, _, same_worker = convert(local, raw_disk, tmp_path / "good")
    assert (status, same_worker) == (0, worker)
