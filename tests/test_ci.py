"""What continuous integration runs leaves what people want to look at, whatever came of it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment

SHOTS = "tests/web/screenshots"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository whose `make` takes a picture, and whose tests fail where `broken` lies."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPOSITORY / ".ci" / "run", tmp_path / ".ci" / "run")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    lines = ("#!/bin/sh", f"mkdir -p {SHOTS}", f'echo "$1" >> {SHOTS}/seen', "test ! -e broken")
    make.write_text("\n".join(lines) + "\n")
    make.chmod(0o755)
    return tmp_path


def ci(clone: Path) -> int:
    path = f"{clone / 'bin'}:{environment()['PATH']}"
    return subprocess.run(
        [clone / ".ci" / "run"], check=False, env=environment(PATH=path), timeout=30
    ).returncode


def test_pictures_are_kept_as_artifacts_of_everything_that_was_run(clone: Path) -> None:
    assert ci(clone) == 0
    assert (clone / "artifacts" / "screenshots" / "seen").read_text() == "lint\naudit\ntest\n"


def test_pictures_are_kept_when_something_fails_and_that_is_told(clone: Path) -> None:
    (clone / "broken").touch()
    assert ci(clone) != 0
    assert (clone / "artifacts" / "screenshots" / "seen").exists()


def test_no_picture_of_an_earlier_run_is_kept(clone: Path) -> None:
    (clone / "artifacts" / "screenshots").mkdir(parents=True)
    (clone / "artifacts" / "screenshots" / "old").touch()
    assert ci(clone) == 0
    assert not (clone / "artifacts" / "screenshots" / "old").exists()
