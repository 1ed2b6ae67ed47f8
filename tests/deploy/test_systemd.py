"""The systemd units are valid, and as confined as they say."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import REPOSITORY

UNITS: Final = REPOSITORY / "deploy" / "systemd"
MOST_EXPOSED: Final = {"h2kbus-scheduler.service": 15, "h2kbus-worker@.service": 27}
"""Ten times systemd's exposure level, which goes from 0 (confined) to 10; up to 4 it says OK.

The worker's is 0.9 above what it would be without sandboxes for its tools: making namespaces and mounting in
them counts as exposure. In return a tool that is taken over sees one directory and no network.
"""

SANDBOX_NEEDS: Final = {
    "RestrictNamespaces": {"user", "mnt", "pid", "net", "ipc", "uts"},
    "RestrictAddressFamilies": {"AF_NETLINK"},
    "SystemCallFilter": {"mount", "umount2", "pivot_root", "capset"},
}
"""What bubblewrap does, as strace shows it, beyond @system-service without @privileged."""


def analyze(*words: str) -> "subprocess.CompletedProcess[str]":
    argv = ["systemd-analyze", "--no-pager", *words]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("unit", sorted(MOST_EXPOSED))
def test_unit_is_as_confined_as_it_can_be(unit: str) -> None:
    threshold = f"--threshold={MOST_EXPOSED[unit]}"
    done = analyze("security", "--offline=true", threshold, str(UNITS / unit))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", sorted(MOST_EXPOSED))
def test_unit_is_one_that_systemd_understands(unit: str, tmp_path: Path) -> None:
    """The program is not installed where it will be: there, something else that exists stands for it."""
    text = (UNITS / unit).read_text().replace("/opt/h2kbus/bin/h2kbus", shutil.which("true") or "")
    place = tmp_path / unit.replace("@", "@1")
    place.write_text(text)
    done = analyze("verify", "--man=no", str(place))
    complaints = [line for line in done.stderr.splitlines() if "h2kbus" in line]
    assert complaints == [], done.stderr


@pytest.mark.parametrize("setting", sorted(SANDBOX_NEEDS))
def test_worker_may_make_sandboxes(setting: str) -> None:
    lines = (UNITS / "h2kbus-worker@.service").read_text().splitlines()
    values = [line.partition("=")[2] for line in lines if line.startswith(f"{setting}=")]
    assert SANDBOX_NEEDS[setting] <= {word for value in values for word in value.split()}


def test_no_other_unit_is_left_unexamined() -> None:
    assert {each.name for each in UNITS.iterdir()} == set(MOST_EXPOSED)
