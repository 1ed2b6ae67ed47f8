"""A real worker with roots on a real bus: a job that leaves them ends with its code, the worker lives on."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Program, environment, read_ready
from tests.security.roots import Land
from tests.workers.conftest import qemu_img

pytestmark = pytest.mark.slow


@pytest.fixture
def site(land: Land, tmp_path: Path) -> Iterator[Program]:
    """A whole bus whose worker may reach the root."""
    program = Program(environment(HOME=str(tmp_path), USER="tester"), tmp_path)
    roots = ("--image-root", land.root, "--output-root", land.root)
    words = ("up", "--json", "--port", "0", "--data-dir", tmp_path / "data", *roots)
    with program.started(*words) as process:
        program.environment["H2KBUS_URL"] = read_ready(process)["url"]
        yield program
        assert process.poll() is None, "the worker died"


def convert(program: Program, image: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    return program("submit", "--operation", "convert", "--image", image, "--output-dir", out, "--wait")


def test_jobs_that_leave_the_roots_fail_with_their_code_and_others_go_on(site: Program, land: Land) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-b", land.canary, "-F", "raw", land.root / "layer.qcow2", "1M")
    (land.root / "link").symlink_to(land.empty)
    refused = {
        "IMAGE_UNSAFE": [
            (land.canary, land.root / "out"),
            (land.root / "images" / ".." / ".." / "outside" / "canary" / "disk.img", land.root / "out"),
            (land.root / "layer.qcow2", land.root / "out"),
        ],
        "OUTPUT_UNWRITABLE": [(land.image, land.empty), (land.image, land.root / "link")],
    }
    for code, jobs in refused.items():
        for image, out in jobs:
            done = convert(site, image, out)
            assert (done.returncode, code in done.stdout + done.stderr) == (1, True), (
                done.stdout + done.stderr
            )
    assert convert(site, land.image, land.root / "out").returncode == 0
    assert land.is_untouched


def test_roots_stand_in_the_fleet(site: Program, land: Land) -> None:
    [worker] = [json.loads(line) for line in site("workers", "--json").stdout.splitlines()]
    assert worker["image_roots"] == worker["output_roots"] == [str(land.root)]


def test_roots_of_the_environment_count(land: Land, tmp_path: Path) -> None:
    """As the systemd unit and the container give them: several, separated by colons."""
    roots = f"{land.root}:{land.empty}"
    program = Program(environment(HOME=str(tmp_path), USER="tester", H2KBUS_IMAGE_ROOTS=roots), tmp_path)
    words = ("up", "--json", "--port", "0", "--data-dir", tmp_path / "data")
    with program.started(*words) as process:
        program.environment["H2KBUS_URL"] = read_ready(process)["url"]
        [worker] = [json.loads(line) for line in program("workers", "--json").stdout.splitlines()]
        assert worker["image_roots"] == [str(land.root), str(land.empty)]


def test_root_that_is_missing_is_said_at_the_start(tmp_path: Path) -> None:
    program = Program(environment(HOME=str(tmp_path), USER="tester"), tmp_path)
    done = program("up", "--port", "0", "--data-dir", tmp_path / "data", "--image-root", tmp_path / "nowhere")
    assert (done.returncode, "BAD_SETTINGS" in done.stderr) == (2, True), done.stderr
