"""Every kind of bad input: one clear line with its code, the right exit code, nothing half-written."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subjects.codec import encode
from tests.conftest import Program, rehearsal

pytestmark = pytest.mark.slow

ONE_LINE = 1


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small VMDK with content."""
    raw, vmdk = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    raw.write_bytes(os.urandom(6 << 20) + bytes(2 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, vmdk], check=True, timeout=60)
    return vmdk


def missing(image: Path) -> list[str]:
    image.unlink()
    return []


def directory(image: Path) -> list[str]:
    image.unlink()
    image.mkdir()
    return []


def truncated(image: Path) -> list[str]:
    os.truncate(image, image.stat().st_size // 2)
    return []


def wrong_format(image: Path) -> list[str]:
    return ["--format", "qcow2"]


def wrong_checksum(image: Path) -> list[str]:
    return ["--checksum", "sha256:" + "0" * 64]


def output_exists(image: Path) -> list[str]:
    target = image.parent / "out" / "disk.qcow2"
    target.parent.mkdir()
    target.write_text("mine")
    return []


def fifo(image: Path) -> list[str]:
    image.unlink()
    os.mkfifo(image)
    return []


IMAGES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "missing image": (missing, "IMAGE_NOT_FOUND"),
    "directory as image": (directory, "IMAGE_UNSAFE"),
    "pipe as image": (fifo, "IMAGE_UNSAFE"),
    "truncated VMDK": (truncated, "IMAGE_CORRUPT"),
    "wrong declared format": (wrong_format, "FORMAT_MISMATCH"),
    "checksum mismatch": (wrong_checksum, "CHECKSUM_MISMATCH"),
    "output exists": (output_exists, "OUTPUT_EXISTS"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_bad_image_ends_the_job_with_its_code(local: Program, image: Path, out: Path, case: str) -> None:
    spoil, code = IMAGES[case]
    more = spoil(image)
    words = ["submit", "--wait", "--operation", "convert", "--image", image, "--output-dir", out, *more]
    done = local(*words)
    assert done.returncode == 1
    assert f"FAILED  {code}: " in done.stdout.splitlines()[-1]
    assert left_over(out) == (["disk.qcow2"] if case == "output exists" else [])


def left_over(out: Path) -> list[str]:
    """What lies in the output directory beside the job's log."""
    return sorted(each.name for each in out.iterdir() if each.suffix != ".log") if out.exists() else []


def test_full_output_disk_ends_the_job_with_no_space(local: Program, image: Path, small_disk: Path) -> None:
    words = ("submit", "--wait", "--operation", "convert", "--image", image, "--output-dir", small_disk)
    done = local(*words)
    assert done.returncode == 1
    assert "FAILED  NO_SPACE: " in done.stdout.splitlines()[-1]
    assert left_over(small_disk) == []


def job(**more: Any) -> bytes:
    return encode(rehearsal(**more))


def changed(**fields: Any) -> bytes:
    document = {
        "operation": "rehearse",
        "image": {"path": "/x"},
        "artifacts": {"output_path": "/out"},
        "audit": {"requested_by": "tester"},
    }
    return encode({**document, **fields})


FILES: dict[str, tuple[bytes, str]] = {
    "priority 11": (changed(execution_policy={"priority": 11}), "$.execution_policy.priority"),
    "unknown operation": (changed(operation="frobnicate"), "$.operation"),
    "unknown parameter": (changed(parameters={"colour": "red"}), "colour"),
    "unknown action": (changed(requested_actions=["polish"]), "$.requested_actions[0]"),
    "2 MB job file": (changed(parameters={"mark": "x" * 2_000_000}), "bytes"),
    "invalid UTF-8": (changed(job_id="MARK").replace(b"MARK", b"\xff\xfe"), "UTF-8"),
    "job_id with a dot": (changed(job_id="a.b"), "$.job_id"),
    "job_id with a wildcard": (changed(job_id="a>"), "$.job_id"),
    "no JSON at all": (b"{ this is no JSON", "$"),
    "empty file": (b"", "no job"),
    "another major version": (changed(version="2.0"), "$.version"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_job_is_exit_2_with_the_field(local: Program, tmp_path: Path, case: str) -> None:
    content, told = FILES[case]
    file = tmp_path / "job.json"
    file.write_bytes(content)
    done = local("submit", file)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert "INVALID_SPEC" in line
    assert told in line


USAGE: dict[str, list[str]] = {
    "no file and no operation": ["submit"],
    "operation without an image": ["submit", "--operation", "convert"],
    "file that does not exist": ["submit", "nowhere.json"],
    "unknown option": ["submit", "--frob"],
    "unknown command": ["frob"],
    "priority 11 as an option": [
        "submit", "--operation", "convert", "--image", "x", "--output-dir", "y", "--priority", "11",
    ],
    "parameter without a value": [
        "submit", "--operation", "convert", "--image", "x", "--output-dir", "y", "--set", "compress",
    ],
    "time that is none": ["ls", "--since", "yesterday"],
    "context that does not exist": ["ls", "--context", "nowhere"],
    "credentials that cannot be read": ["ls", "--creds", "/nowhere.creds"],
    "certificate without its key": ["ls", "--tls-cert", "/nowhere.pem"],
    "root that is none": ["ls", "--root", "a.*.v1"],
    "capability that does not exist": ["worker", "--capability", "flying=on"],
    "plug-in that does not exist": ["worker", "--operations", "no.such:THING"],
}  # fmt: skip


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_is_exit_2(local: Program, case: str) -> None:
    assert local(*USAGE[case]).returncode == 2


def test_bus_that_is_not_there_is_exit_3(local: Program) -> None:
    done = local("ls", "--url", "nats://127.0.0.1:1")
    assert done.returncode == 3
    assert done.stderr.startswith("h2kbus: BUS_UNREACHABLE: no NATS server answers at nats://127.0.0.1:1")
    assert len(done.stderr.splitlines()) == ONE_LINE


@pytest.mark.parametrize("command", ["status", "watch", "cancel", "retry"])
def test_job_that_is_not_there_is_exit_4(local: Program, command: str) -> None:
    done = local(command, "no-such-job")
    assert done.returncode == 4
    assert "JOB_NOT_FOUND: no job no-such-job" in done.stderr


def test_finished_job_cannot_be_cancelled(local: Program, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_bytes(job(job_id="over"))
    local("submit", "--wait", file)
    done = local("cancel", "over")
    assert done.returncode == 2
    assert "JOB_FINISHED: job over is COMPLETED already" in done.stderr
