"""The plug-in of the documents is installed as it stands there, and does what they say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Program, environment
from tests.workers.conftest import qemu_img

pytestmark = pytest.mark.slow

FILES = re.compile(r"^`([\w/.]+)`:.*?^```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def plugged(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program in an environment that has the plug-in, beside a disk."""
    place = tmp_path_factory.mktemp("plug-in")
    files = dict(FILES.findall((REPOSITORY / "docs" / "plug-ins.md").read_text()))
    assert files.keys() == {"pyproject.toml", "h2kbus_size/declaration.py", "h2kbus_size/runner.py"}
    for name, text in {**files, "h2kbus_size/__init__.py": ""}.items():
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "source" / name).write_text(text)
    words = (
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
        place / "site",
    )
    argv = [sys.executable, "-m", "pip", *map(str, words), str(place / "source")]
    subprocess.run(argv, check=True, capture_output=True, timeout=100)
    qemu_img("create", "-q", "-f", "vmdk", place / "disk.vmdk", "8M")
    path = f"{REPOSITORY}:{place / 'site'}"
    return Program({**environment(HOME=str(place), USER="tester"), "PYTHONPATH": path}, place)


def run(program: Program, *more: object) -> "subprocess.CompletedProcess[str]":
    words = ("run", "--json", "--operation", "size", "--output-dir", program.place / "sizes")
    return program(*words, "--image", *more)


def test_plug_in_runs_and_publishes_its_answer(plugged: Program) -> None:
    done = run(plugged, "disk.vmdk", "--set", "target=raw")
    record = json.loads(done.stdout)
    assert (done.returncode, record["state"]) == (0, "COMPLETED")
    answer = {"target": "raw", "bytes": 8 << 20}
    assert record["result"]["summary"] == answer
    assert json.loads(Path(record["result"]["outputs"]["report"]).read_text()) == answer


def test_plug_in_is_a_capability_of_its_own(plugged: Program) -> None:
    assert json.loads(plugged("capabilities", "--json").stdout)["capabilities"]["op-size"]


def test_parameter_that_the_plug_in_does_not_have_is_refused_by_name(plugged: Program) -> None:
    done = run(plugged, "disk.vmdk", "--set", "colour=blue")
    assert done.returncode == 2
    assert "colour" in done.stderr + done.stdout


def test_hostile_image_does_not_reach_the_plug_ins_tool(plugged: Program) -> None:
    qemu_img(
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "/etc/passwd",
        "-F",
        "raw",
        "-u",
        plugged.place / "evil.qcow2",
        "1M",
    )
    done = run(plugged, "evil.qcow2")
    assert done.returncode == 1
    assert json.loads(done.stdout)["result"]["error"]["code"] == "IMAGE_UNSAFE"
