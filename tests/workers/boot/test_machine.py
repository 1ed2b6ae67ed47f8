"""Boots of disks whose boot sector says what a guest would say: how each ends, and what is left of it."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import BootTestParameters
from tests.workers.conftest import Bench
from workers.boot.command import Parts, command_line
from workers.boot.firmware import Ovmf, firmware_of
from workers.boot.request import BootRequest
from workers.formats.header import Window
from workers.partitions import Partition, PartitionTable
from workers.qemu import Disk

pytestmark = pytest.mark.anyio

MIB = 1 << 20
HALT = b"\xf4\xeb\xfd"
RESET = b"\xb0\xfe\xe6\x64"
NOTHING = b"\x90"
_WRITE_WORDS = (
    # Interrupts are off, so that the firmware's own serial console says nothing in between.
    *("fa", "31c0", "8ed8", "fc", "be407c"),  # cli; xor ax,ax; mov ds,ax; cld; mov si,words
    *("ac", "84c0", "7412"),  # next: lodsb; test al,al; jz end
    *(
        "88c4",
        "bafd03",
        "ec",
        "a820",
        "74fb",
    ),  # mov ah,al; mov dx,0x3fd; is: in al,dx; test al,0x20; jz is
    *("88e0", "baf803", "ee", "ebe9"),  # mov al,ah; mov dx,0x3f8; out dx,al; jmp next
)


def boot_sector(words: str, then: bytes = HALT) -> bytes:
    """Code that writes the words to the first serial port, and then does something else."""
    code = bytes.fromhex("".join(_WRITE_WORDS))
    said = f"\r\n{words}" if words else ""
    return (code.ljust(40, NOTHING) + then).ljust(64, b"\0") + said.encode() + b"\0"


def disk(place: Path, words: str, then: bytes = HALT) -> Path:
    path = place / "disk.raw"
    path.touch()
    os.truncate(path, 8 * MIB)
    with path.open("r+b") as file:
        file.write(boot_sector(words, then).ljust(510, b"\0") + b"\x55\xaa")
    return path


def machines(place: Path) -> list[int]:
    """Emulators that still have to do with a directory."""
    running = psutil.process_iter(["name", "cmdline"])
    emulators = (each for each in running if "qemu-system" in (each.info["name"] or ""))
    return [each.pid for each in emulators if str(place) in " ".join(each.info["cmdline"] or [])]


@pytest.fixture
def able(bench: Bench) -> Bench:
    bench.capabilities = frozenset({"qemu-img", "qemu-system"})
    return bench


async def failure(bench: Bench, path: Path, **parameters: Any) -> OperationFailed:
    with pytest.raises(OperationFailed) as caught:
        await bench.run("boot_test", path, parameters={"boot_seconds": 10, **parameters})
    assert machines(bench.out) == []
    assert not any(each.startswith(".h2kbus") for each in bench.names())
    return caught.value


@pytest.mark.slow
async def test_guest_that_asks_for_a_login_boots(able: Bench, tmp_path: Path) -> None:
    path = disk(tmp_path, "guest login: ")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    result = await able.run("boot_test", path)
    assert (result.summary["boots"], result.summary["stage"]) == (True, "login")
    assert able.names() == ["job-1.console.log", "job-1.report.json", "job-1.screen.png"]
    assert b"guest login:" in (able.out / "job-1.console.log").read_bytes()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert machines(able.out) == []


ENDS = [
    ("(initramfs) ", HALT, "initramfs-shell"),
    ("Kernel panic - not syncing: no init\r\n", HALT, "kernel-panic"),
    ("grub rescue> ", HALT, "grub-rescue"),
    ("something of its own\r\n", RESET, "reset"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "then", "stage"), ENDS, ids=[each[2] for each in ENDS])
async def test_guest_that_fails_leaves_its_console_and_its_screen(
    able: Bench, tmp_path: Path, words: str, then: bytes, stage: str
) -> None:
    told = await failure(able, disk(tmp_path, words, then))
    assert (told.error_code, told.details["stage"]) == (ErrorCode.BOOT_FAILED, stage)
    assert able.names() == ["job-1.attempt-1.console.log", "job-1.attempt-1.screen.png"]
    assert told.details["console"] == str(able.out / "job-1.attempt-1.console.log")
    assert words.strip() in "\n".join(told.details["console_tail"])


@pytest.mark.slow
async def test_guest_that_says_nothing_is_called_silent(able: Bench, tmp_path: Path) -> None:
    told = await failure(able, disk(tmp_path, ""))
    assert told.details["stage"] == "silent"


@pytest.mark.slow
async def test_guest_that_stops_on_the_way_is_told_with_its_last_stage(able: Bench, tmp_path: Path) -> None:
    told = await failure(able, disk(tmp_path, "Linux version 6.1.0\r\n"))
    assert told.details["stage"] == "timeout"
    assert "kernel" in told.details["detail"]


@pytest.mark.slow
async def test_disk_without_anything_has_no_bootable_device(able: Bench, tmp_path: Path) -> None:
    path = tmp_path / "empty.raw"
    path.touch()
    os.truncate(path, 8 * MIB)
    told = await failure(able, path, boot_seconds=60)
    assert told.details["stage"] == "no-bootable-device"


async def test_hostile_image_is_refused_before_a_machine_starts(able: Bench, tmp_path: Path) -> None:
    path = tmp_path / "image.vmdk"
    path.write_bytes(b"\0" * 4096)
    assert (await failure(able, path)).error_code is ErrorCode.IMAGE_CORRUPT
    assert not any("console" in each for each in able.names())


async def test_taken_name_is_refused_before_a_machine_starts(able: Bench, tmp_path: Path) -> None:
    able.out.mkdir()
    (able.out / "job-1.console.log").write_text("someone's")
    told = await failure(able, disk(tmp_path, "login: "))
    assert told.error_code is ErrorCode.OUTPUT_EXISTS


async def test_cancelled_test_leaves_no_machine_and_no_files(able: Bench, tmp_path: Path) -> None:
    path = disk(tmp_path, "Linux version 6.1.0\r\n")
    with anyio.CancelScope() as scope:
        able.report.on_advance = lambda _, fraction: scope.cancel() if fraction > 0 else None
        await able.run("boot_test", path)
    assert scope.cancelled_caught
    assert machines(able.out) == []
    assert able.names() == []


@pytest.mark.slow
async def test_converted_image_that_does_not_boot_is_not_published(able: Bench, tmp_path: Path) -> None:
    path = disk(tmp_path, "Kernel panic - not syncing: no init\r\n")
    with pytest.raises(OperationFailed) as caught:
        await able.run("convert", path, parameters={"boot_test": True})
    assert caught.value.error_code is ErrorCode.BOOT_FAILED
    assert able.names() == ["job-1.attempt-1.console.log", "job-1.attempt-1.screen.png"]


@pytest.mark.slow
async def test_converted_image_that_boots_is_published_with_its_console(able: Bench, tmp_path: Path) -> None:
    result = await able.run("convert", disk(tmp_path, "guest login: "), parameters={"boot_test": True})
    assert result.summary["boot"]["stage"] == "login"
    assert able.names() == ["disk.qcow2", "job-1.console.log", "job-1.report.json", "job-1.screen.png"]
    assert able.report.phases[-2:] == ["boot", "publish"]


def words_of(request: BootRequest, ovmf: Ovmf | None = None) -> Sequence[str]:
    return command_line(request, Parts(overlay="over,lay.qcow2", ovmf=ovmf, console=7))


def test_machine_has_no_network_and_may_start_nothing() -> None:
    words = " ".join(words_of(BootRequest(disk=Disk(path=Path("/d.raw"), format="raw"))))
    assert "-nic none" in words
    assert "-nodefaults" in words
    assert "-no-user-config" in words
    assert "spawn=deny" in words
    assert "-accel tcg" in words


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk"])
def test_image_is_read_only_and_its_backing_file_is_never_opened(image_format: Any) -> None:
    words = words_of(BootRequest(disk=Disk(path=Path("/d,isk"), format=image_format)))
    base = next(each for each in words if '"node-name":"source"' in each)
    assert '"read-only":true' in base
    assert '"filename":"/d,isk"' in base
    assert ('"backing":null' in base) == (image_format != "raw")


def test_disk_in_an_archive_is_a_window_of_its_file() -> None:
    part = Disk(path=Path("/a.ova"), format="vmdk", window=Window(512, 4096))
    base = next(each for each in words_of(BootRequest(disk=part)) if '"node-name":"source"' in each)
    assert '"offset":512' in base
    assert '"size":4096' in base


def test_kvm_is_used_only_where_it_was_proven() -> None:
    disk_ = Disk(path=Path("/d.raw"), format="raw")
    wanted = BootTestParameters()
    assert not BootRequest.of(disk_, wanted, frozenset({"qemu-system"})).accelerated
    assert "kvm" in words_of(BootRequest.of(disk_, wanted, frozenset({"kvm"})))


def test_comma_in_a_path_of_the_firmware_is_no_option() -> None:
    ovmf = Ovmf(Path("/usr/share/OVMF,x.fd"), Path("/scratch/a,b.fd"))
    words = " ".join(words_of(BootRequest(disk=Disk(path=Path("/d.raw"), format="raw")), ovmf))
    assert "file=/usr/share/OVMF,,x.fd" in words
    assert "file=/scratch/a,,b.fd" in words


def table(scheme: str, *kinds: str, bootable: bool = False) -> PartitionTable:
    found = [
        Partition(number=number, start_bytes=MIB, size_bytes=MIB, type=kind, bootable=bootable)
        for number, kind in enumerate(kinds, 1)
    ]
    return PartitionTable(scheme=scheme, partitions=tuple(found))


CODE, NO_CODE = b"\xeb\x63" + bytes(510), bytes(512)


@pytest.mark.parametrize(
    ("found", "sector", "firmware"),
    [
        (table("gpt", "EFI system", "Linux filesystem"), NO_CODE, "uefi"),
        (table("gpt", "EFI system", "BIOS boot"), CODE, "bios"),
        (table("gpt", "BIOS boot", "Linux filesystem"), CODE, "bios"),
        (table("gpt", "EFI system", "Microsoft basic data"), CODE, "uefi"),
        (table("mbr", "Linux", bootable=True), CODE, "bios"),
        (table("mbr", "EFI system"), NO_CODE, "uefi"),
        (table("none"), NO_CODE, "bios"),
    ],
)
def test_firmware_is_the_one_that_the_disk_is_made_for(
    found: PartitionTable, sector: bytes, firmware: str
) -> None:
    assert firmware_of(found, sector) == firmware
