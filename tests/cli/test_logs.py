"""`h2kbus logs`: what an attempt has logged, wherever its worker was."""

from pathlib import Path

import pytest

from tests.conftest import Program

pytestmark = pytest.mark.slow


def test_log_of_a_job_is_shown(local: Program, small_image: Path) -> None:
    words = ("--operation", "convert", "--image", small_image, "--output-dir", small_image.parent / "out")
    job_id = local("submit", *words, "--wait").stdout.split()[0]
    done = local("logs", job_id)
    assert done.returncode == 0
    assert "attempt 1 of convert" in done.stdout
    assert "run: qemu-img" in done.stdout
    assert local("logs", job_id, "--attempt", "1").stdout == done.stdout


def test_job_without_a_log_says_why(local: Program) -> None:
    document = local.place / "silent.json"
    document.write_text(
        '{"operation": "rehearse", "image": {"path": "/x"}, "job_id": "silent",'
        ' "artifacts": {"output_path": "/tmp/x", "log_upload": false}, "audit": {"requested_by": "tester"}}'
    )
    assert local("submit", document, "--wait").returncode == 0
    done = local("logs", "silent")
    assert done.returncode == 4
    assert "log_upload: false" in done.stderr


def test_attempt_that_was_not_is_said(local: Program, small_image: Path) -> None:
    words = ("--operation", "convert", "--image", small_image, "--output-dir", small_image.parent / "out2")
    job_id = local("submit", *words, "--wait").stdout.split()[0]
    done = local("logs", job_id, "--attempt", "7")
    assert done.returncode == 4
    assert f"attempt 7 of job {job_id} has no log on the bus" in done.stderr


def test_unknown_job_is_said(local: Program) -> None:
    assert local("logs", "nobody").returncode == 4


@pytest.fixture
def small_image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 4096)
    return image
