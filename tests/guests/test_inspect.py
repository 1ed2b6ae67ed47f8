"""What `h2kbus inspect` says of real guests: it knows what keeps one from booting, and finds nothing else."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import Program, environment
from tests.guests.breakage import BREAKAGES
from tests.guests.build import guest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SECONDS = 300


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(environment(HOME=str(tmp_path), COLUMNS="200"), tmp_path)


def broken(place: Path, name: str, *breakages: str) -> Path:
    copy = Path(shutil.copyfile(guest(name), place / "disk.raw"))
    for each in breakages:
        BREAKAGES[each](copy, name)
    return copy


def report(program: Program, disk: Path) -> dict[str, Any]:
    done = program("inspect", disk, "--json", timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return msgspec.json.decode(done.stdout.encode(), type=dict[str, Any])


def test_guest_in_order_should_boot(program: Program, tmp_path: Path) -> None:
    image = report(program, broken(tmp_path, "lvm"))["image"]
    assert image["verdict"]["sentence"] == "should boot on KVM"
    (system,) = image["guest"]["systems"]
    assert (system["id"], system["root"]) == ("debian", "/dev/mapper/guest-root")
    assert system["loader"]["firmware"] == "bios"
    assert system["kernels"][0]["drivers"]["virtio_blk"] is True


def test_missing_drivers_and_old_names_are_in_the_verdict(program: Program, tmp_path: Path) -> None:
    verdict = report(program, broken(tmp_path, "xfs", "everything"))["image"]["verdict"]
    assert verdict["boots"] == "no"
    assert "has no virtio_pci, virtio_blk" in verdict["sentence"]
    assert "fstab names /dev/sdb1 for /srv" in verdict["sentence"]
    assert {each.get("mended_by") for each in verdict["reasons"]} >= {"initramfs_regenerate", "offline_fix"}


def test_table_ends_with_the_verdict(program: Program, tmp_path: Path) -> None:
    done = program("inspect", broken(tmp_path, "uefi", "fallback-loader"), timeout=SECONDS)
    assert done.returncode == 0
    assert "boots by" in done.stdout
    assert "boot_repair" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("will not boot on KVM: ")
