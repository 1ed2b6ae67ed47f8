from pathlib import Path

import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.workers.conftest import (
    DISK_BYTES,
    PARTITION_AT,
    PARTITION_BYTES,
    Bench,
    convert_to,
    qemu_img,
)

pytestmark = pytest.mark.anyio


async def test_partition_table_is_read_out_of_a_vmdk(bench: Bench, vmdk: Path) -> None:
    await bench.run("inspect", vmdk)
    table = bench.read_report()["image"]["partition_table"]
    assert table["scheme"] == "gpt"
    (partition,) = table["partitions"]
    assert (partition["start_bytes"], partition["size_bytes"]) == (PARTITION_AT, PARTITION_BYTES)
    assert (partition["name"], partition["type"], partition["filesystem"]) == ("root", "Linux", "ext")


async def test_backup_table_is_read_when_the_first_is_damaged(
    bench: Bench, raw_disk: Path, tmp_path: Path
) -> None:
    image = tmp_path / "damaged.img"
    data = bytearray(raw_disk.read_bytes())
    data[600:700] = bytes(100)
    image.write_bytes(data)
    await bench.run("inspect", image)
    table = bench.read_report()["image"]["partition_table"]
    assert [each["name"] for each in table["partitions"]] == ["root"]
    assert any("backup" in each for each in table["warnings"])


async def test_sizes_and_verdict_are_reported(bench: Bench, raw_disk: Path, tmp_path: Path) -> None:
    image = convert_to(raw_disk, tmp_path / "disk.qcow2", "qcow2")
    result = await bench.run("inspect", image)
    facts = bench.read_report()["image"]
    assert facts["virtual_size"] == DISK_BYTES
    assert facts["check"]["verdict"] == "clean"
    assert result.summary["format"] == "qcow2"


async def test_backing_file_is_reported_and_not_opened(bench: Bench, raw_disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "overlay.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", raw_disk, "-F", "raw", image)
    await bench.run("inspect", image)
    report = bench.read_report()
    assert report["image"]["backing_chain"] == [str(raw_disk)]
    assert report["commands"] == []


async def test_missing_end_is_a_finding_of_the_inspection(bench: Bench, vmdk: Path, tmp_path: Path) -> None:
    image = tmp_path / "cut.vmdk"
    image.write_bytes(vmdk.read_bytes()[:-100_000])
    await bench.run("inspect", image)
    assert bench.read_report()["image"]["findings"][0]["code"] == "IMAGE_CORRUPT"


async def test_v1_action_nbd_attach_reads_the_table_without_attaching(bench: Bench, vmdk: Path) -> None:
    await bench.run("inspect", vmdk, actions=("nbd_attach",))
    report = bench.read_report()
    outcomes = {each["action"]: each["outcome"] for each in report["actions"]}
    assert outcomes["nbd_attach"] == "not needed"
    assert outcomes["check"] == "skipped"
    assert report["image"]["partition_table"]["scheme"] == "gpt"


async def test_bare_ntfs_volume_has_no_partitions(bench: Bench, tmp_path: Path) -> None:
    sector = bytearray(b"\xee" * 512)
    sector[:11] = b"\xeb\x52\x90NTFS    "
    sector[446:462] = b"A disk read erro"
    sector[510:] = b"\x55\xaa"
    image = tmp_path / "volume.img"
    image.write_bytes(bytes(sector) + bytes(1 << 20))
    await bench.run("inspect", image)
    table = bench.read_report()["image"]["partition_table"]
    assert (table["scheme"], table["filesystem"], table["partitions"]) == ("none", "ntfs", [])


async def test_taken_report_name_is_refused(bench: Bench, vmdk: Path) -> None:
    await bench.run("inspect", vmdk)
    with pytest.raises(OperationFailed) as caught:
        await bench.run("inspect", vmdk)
    assert caught.value.error_code is ErrorCode.OUTPUT_EXISTS
