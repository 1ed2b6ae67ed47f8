"""Operations that change a guest, on disks that they cannot mend: a clear code, and nothing left behind."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.guests.build import MIB
from tests.guests.small import disk, encrypted, filesystem, system, tree
from tests.workers.conftest import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ABLE = frozenset({"qemu-img", "guestfs"})
Make = Callable[[Path], Path]


@pytest.fixture
def able(bench: Bench) -> Bench:
    """A worker that can open guests."""
    bench.capabilities = ABLE
    return bench


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def of_this_place(place: Path) -> list[str]:
    """Processes that still have to do with a directory."""
    found = []
    for each in psutil.process_iter(["cmdline"]):
        words = " ".join(each.info["cmdline"] or [])
        if str(place) in words and each.pid != os.getpid():
            found.append(words)
    return found


async def refusal(bench: Bench, operation: str, image: Path, **more: Any) -> OperationFailed:
    """Why the operation fails, which leaves the source as it was and nothing else behind."""
    before = checksum(image)
    with pytest.raises(OperationFailed) as caught:
        pytest.fail(f"it completed: {(await bench.run(operation, image, **more)).summary}")
    assert checksum(image) == before
    assert bench.names() == []
    assert of_this_place(bench.out) == []
    return caught.value


def no_system(place: Path) -> Path:
    return disk(place / "disk.raw", filesystem(place / "data", {"/notes.txt": "data only"}))


def two_systems(place: Path) -> Path:
    one, other = (filesystem(place / name, system(name)) for name in ("Alpha", "Beta"))
    return disk(place / "disk.raw", one, other)


def encrypted_root(place: Path) -> Path:
    return disk(place / "disk.raw", encrypted(place / "luks"))


def unknown_distribution(place: Path) -> Path:
    kernel = {"/boot/vmlinuz-6.6.6": "", "/lib/modules/6.6.6/modules.dep": "", "/boot/initrd.img-6.6.6": ""}
    return disk(place / "disk.raw", filesystem(place / "root", {**system("Plan"), **kernel}))


def endless_initramfs(place: Path) -> Path:
    """One byte more than any has, all of it a hole: it takes no room in the guest."""
    kernel = {"/boot/vmlinuz-6.6.6": "", "/lib/modules/6.6.6/modules.dep": ""}
    hole = tree(place / "root.tree", {"/boot/initrd.img-6.6.6": ""}) / "boot" / "initrd.img-6.6.6"
    os.truncate(hole, 1024 * MIB + 1)
    return disk(place / "disk.raw", filesystem(place / "root", {**system("Plan"), **kernel}))


def empty(place: Path) -> Path:
    path = place / "disk.raw"
    path.touch()
    os.truncate(path, 16 * MIB)
    return path


BAD: list[tuple[str, Make, ErrorCode, str]] = [
    ("boot_repair", empty, ErrorCode.NO_OS_FOUND, "no operating system was found"),
    ("fs_repair", empty, ErrorCode.NO_OS_FOUND, "no filesystem was found"),
    ("offline_fix", no_system, ErrorCode.NO_OS_FOUND, "no operating system was found"),
    ("boot_repair", two_systems, ErrorCode.MULTIPLE_OS, "Alpha 1 on /dev/vda1, Beta 1 on /dev/vda2"),
    ("selinux_prep", encrypted_root, ErrorCode.GUEST_ENCRYPTED, "encrypted are /dev/vda1"),
    ("fs_repair", encrypted_root, ErrorCode.GUEST_ENCRYPTED, "encrypted is /dev/vda1"),
    ("initramfs_regenerate", unknown_distribution, ErrorCode.GUEST_UNSUPPORTED, "neither update-initramfs"),
    ("initramfs_regenerate", endless_initramfs, ErrorCode.GUEST_UNSUPPORTED, "is of 1073741825 bytes"),
]


@pytest.mark.parametrize(
    ("operation", "make", "code", "words"), BAD, ids=[f"{each[0]}-{each[1].__name__}" for each in BAD]
)
async def test_guest_that_cannot_be_mended_has_a_code_of_its_own(
    able: Bench, tmp_path: Path, operation: str, make: Make, code: ErrorCode, words: str
) -> None:
    failure = await refusal(able, operation, make(tmp_path))
    assert (failure.error_code, words in str(failure)) == (code, True), str(failure)


async def test_one_of_two_systems_can_be_chosen(able: Bench, tmp_path: Path) -> None:
    failure = await refusal(able, "boot_repair", two_systems(tmp_path), parameters={"root": "/dev/vda2"})
    # It is chosen, and has nothing to boot.
    assert failure.error_code is ErrorCode.GUEST_UNSUPPORTED


async def test_filesystem_beyond_repair_is_told_in_the_tool_s_words(able: Bench, tmp_path: Path) -> None:
    """Every structure of it is overwritten but the superblock that says what it was."""
    root = filesystem(tmp_path / "root", system("Alpha"))
    with root.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(root.stat().st_size - 4096))
    failure = await refusal(able, "fs_repair", disk(tmp_path / "disk.raw", root))
    assert failure.error_code is ErrorCode.FS_CORRUPTION_UNRECOVERABLE
    assert failure.details["tool_output"]
    assert {"action": "fsck", "outcome": "failed"}.items() <= failure.details["actions"][-1].items()


async def test_disk_that_is_cut_short_is_not_called_repaired(able: Bench, tmp_path: Path) -> None:
    whole = disk(tmp_path / "disk.raw", filesystem(tmp_path / "root", system("Alpha")))
    os.truncate(whole, 20 * MIB)
    failure = await refusal(able, "fs_repair", whole)
    assert failure.error_code in {ErrorCode.FS_CORRUPTION_UNRECOVERABLE, ErrorCode.NO_OS_FOUND}


async def test_full_filesystem_of_the_guest_is_named(able: Bench, tmp_path: Path) -> None:
    names = system("Alpha")
    names["/etc/fstab"] = "/dev/sda1 / ext4 defaults 0 1\n"
    root = filesystem(tmp_path / "root", names, mib=16)
    fill(root)
    failure = await refusal(able, "offline_fix", disk(tmp_path / "disk.raw", root), actions=("fstab",))
    assert failure.error_code is ErrorCode.GUEST_DISK_FULL


def fill(root: Path) -> None:
    """No block of the filesystem is left free, not even those that are kept for root."""
    big = root.with_suffix(".big")
    big.write_bytes(b"x" * root.stat().st_size)
    script = f"write {big} big\n"
    subprocess.run(["debugfs", "-w", "-f", "-", root], input=script, text=True, check=True, timeout=60)


@pytest.mark.parametrize("operation", ["fs_repair", "lvm_repair", "boot_repair", "selinux_prep"])
async def test_worker_that_opens_no_guest_refuses(bench: Bench, tmp_path: Path, operation: str) -> None:
    failure = await refusal(bench, operation, no_system(tmp_path))
    assert failure.error_code is ErrorCode.CAPABILITY_MISSING


async def test_offline_fix_without_the_means_converts_and_says_what_it_left(
    bench: Bench, tmp_path: Path
) -> None:
    result = await bench.run("offline_fix", no_system(tmp_path))
    assert set(result.summary["actions"].values()) == {"skipped"}
    assert f"{len(result.warnings)}" == f"{len(result.summary['actions'])}"
    assert all("was not done: this worker can open no guest" in each for each in result.warnings)
    assert (bench.out / "disk.qcow2").is_file()


async def test_cancelled_repair_leaves_no_appliance_and_no_files(able: Bench, tmp_path: Path) -> None:
    image = two_systems(tmp_path)
    with anyio.CancelScope() as scope:
        able.report.on_advance = lambda phase, _: scope.cancel() if phase == "repair" else None
        await able.run("fs_repair", image)
    assert scope.cancelled_caught
    assert of_this_place(able.out) == []
    assert able.names() == []
