"""`h2kbus logs`: what an attempt has logged, wherever its worker was."""

import json
import signal
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


@pytest.mark.parametrize("words", [(), ("--follow",), ("--attempt", "1")])
def test_unknown_job_is_said(local: Program, words: tuple[str, ...]) -> None:
    assert local("logs", "nobody", *words).returncode == 4


def talking(local: Program, job_id: str, **more: object) -> Path:
    """A job that logs three lines, half a second apart."""
    document = local.place / f"{job_id}.json"
    parameters = {"log_lines": ["one", "two", "three"], "log_pause": 0.5, **more}
    described = {
        "operation": "rehearse", "image": {"path": "/x"}, "job_id": job_id, "parameters": parameters,
        "artifacts": {"output_path": str(local.place / "talk")}, "audit": {"requested_by": "tester"},
    }  # fmt: skip
    document.write_text(json.dumps(described))
    return document


@pytest.mark.parametrize(("more", "code"), [({}, 0), ({"fail": "IMAGE_CORRUPT"}, 1)])
def test_following_a_log_ends_with_the_job_and_its_exit_code(
    local: Program, more: dict[str, object], code: int
) -> None:
    job_id = f"followed-{code}"
    assert local("submit", talking(local, job_id, **more)).returncode == 0
    done = local("logs", job_id, "--follow")
    assert done.returncode == code
    words = [each.split()[-1] for each in done.stdout.splitlines()]
    assert words[-3:] == ["one", "two", "three"]
    assert done.stdout == local("logs", job_id).stdout


def test_following_a_job_that_has_no_log_ends_with_the_job(local: Program) -> None:
    document = local.place / "mute.json"
    document.write_text(
        '{"operation": "rehearse", "image": {"path": "/x"}, "job_id": "mute",'
        ' "artifacts": {"output_path": "/tmp/x"}, "audit": {"requested_by": "tester"}}'
    )
    assert local("submit", document).returncode == 0
    done = local("logs", "mute", "--follow")
    assert (done.returncode, done.stdout) == (0, "")


def test_ctrl_c_while_following_leaves_the_job_alone(local: Program) -> None:
    assert local("submit", talking(local, "left-alone", log_pause=10)).returncode == 0
    with local.started("logs", "left-alone", "--follow") as process:
        assert process.stdout is not None
        assert "attempt 1 of rehearse" in process.stdout.readline()
        [row] = local("artifacts", "left-alone").stdout.splitlines()[1:]
        assert row.split()[:3] == ["1", "log", "unfinished"]
        fetched = local("artifacts", "left-alone", "--get", "log")
        assert (fetched.returncode, "is not finished" in fetched.stderr) == (4, True)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert json.loads(local("status", "left-alone", "--json").stdout)["result"] is None
    assert local("cancel", "left-alone", "--wait").returncode == 0


def test_secret_of_a_job_is_not_in_its_log(local: Program) -> None:
    words = {"vc_password": "correct horse", "log_lines": ["opened with correct horse"], "log_pause": 0}
    assert local("submit", talking(local, "discreet", **words), "--wait").returncode == 0
    text = local("logs", "discreet").stdout
    assert "opened with ***" in text
    assert "correct horse" not in text


@pytest.fixture
def small_image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 4096)
    return image
