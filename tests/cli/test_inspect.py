"""`h2kbus inspect DISK`: one disk, on this machine, without a server."""

import os
from pathlib import Path

import msgspec
import pytest

from tests.conftest import Program, environment
from tests.guests.small import disk, encrypted, filesystem

pytestmark = pytest.mark.slow

SECONDS = 180


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(environment(HOME=str(tmp_path), TMPDIR=str(tmp_path)), tmp_path)


def test_disk_without_a_system_is_shown_with_what_it_holds(program: Program, tmp_path: Path) -> None:
    image = disk(tmp_path / "disk.raw", filesystem(tmp_path / "data", {"/notes.txt": "data only"}))
    done = program("inspect", image, timeout=SECONDS)
    assert done.returncode == 0
    assert "ext4" in done.stdout
    assert done.stdout.splitlines()[-1] == "will not boot on KVM: no operating system was found"


def test_encrypted_disk_is_told_as_such(program: Program, tmp_path: Path) -> None:
    image = disk(tmp_path / "disk.raw", encrypted(tmp_path / "secret"))
    done = program("inspect", image, "--json", timeout=SECONDS)
    verdict = msgspec.json.decode(done.stdout)["image"]["verdict"]
    assert verdict["boots"] == "unknown"
    assert "encrypted: /dev/vda1" in verdict["sentence"]


def test_missing_disk_is_one_line_with_its_code(program: Program, tmp_path: Path) -> None:
    done = program("inspect", tmp_path / "gone.vmdk")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "FAILED  IMAGE_NOT_FOUND: " in line


def test_hostile_disk_is_refused_with_its_code(program: Program, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.raw"
    os.mkfifo(pipe)
    done = program("inspect", pipe)
    assert done.returncode == 1
    assert "FAILED  IMAGE_UNSAFE: " in done.stdout


def test_inspection_leaves_nothing_behind(program: Program, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    before = image.stat()
    assert program("inspect", image, timeout=SECONDS).returncode == 0
    assert [each.name for each in tmp_path.glob("h2kbus-*")] == []
    assert (image.stat().st_mtime_ns, image.stat().st_size) == (before.st_mtime_ns, before.st_size)
