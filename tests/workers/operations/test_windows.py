"""Windows guests: recognised, given drivers by virt-v2v where the worker has some, refused elsewhere."""

import hashlib
from pathlib import Path

import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.guests.windows import service_runner, virtio_drivers, windows
from tests.workers.conftest import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(600)]

ABLE = frozenset({"qemu-img", "guestfs"})


@pytest.fixture(scope="session")
def windows_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("windows")
    return windows(place / "disk.raw", place / "parts")


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_worker_without_drivers_refuses(bench: Bench, windows_disk: Path) -> None:
    bench.capabilities = ABLE
    with pytest.raises(OperationFailed) as caught:
        await bench.run("offline_fix", windows_disk)
    assert caught.value.error_code is ErrorCode.CAPABILITY_MISSING
    assert "Windows Phony" in str(caught.value)
    assert caught.value.details["capability"] == "virtio-win"
    assert bench.names() == []


async def test_repairs_for_linux_say_what_the_guest_is(bench: Bench, windows_disk: Path) -> None:
    bench.capabilities = ABLE
    with pytest.raises(OperationFailed) as caught:
        await bench.run("boot_repair", windows_disk)
    assert caught.value.error_code is ErrorCode.GUEST_UNSUPPORTED
    assert "Windows Phony" in str(caught.value)


async def test_inspect_recognises_it_and_does_not_judge_it(bench: Bench, windows_disk: Path) -> None:
    bench.capabilities = ABLE
    result = await bench.run("inspect", windows_disk)
    assert result.summary["systems"] == ["Windows Phony"]
    assert result.summary["boots_on_kvm"] == "unknown"
    [found] = bench.read_report()["image"]["guest"]["windows"]
    assert found == {"root": "/dev/vda1", "name": "Windows Phony", "version": "6.1", "architecture": "x86_64"}


async def test_virt_v2v_puts_drivers_in_and_a_second_run_finds_them(
    bench: Bench, windows_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTIO_WIN", str(virtio_drivers(tmp_path / "virtio-win")))
    monkeypatch.setenv("VIRT_TOOLS_DATA_DIR", str(service_runner(tmp_path / "virt-tools")))
    bench.capabilities = ABLE | {"virtio-win"}
    before = checksum(windows_disk)
    result = await bench.run("offline_fix", windows_disk)
    assert result.summary["actions"]["windows_drivers"] == "applied"
    assert result.summary["actions"]["fstab"] == "skipped"
    assert checksum(windows_disk) == before
    again = Bench(tmp_path / "again")
    again.capabilities = ABLE
    result = await again.run("offline_fix", bench.out / "disk.qcow2")
    assert result.summary["actions"]["windows_drivers"] == "not needed"
