import re
from pathlib import Path

import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.workers.conftest import DISK_BYTES, Bench, convert_to, qemu_img
from tests.workers.packages import appliance, lay_out, pack

pytestmark = pytest.mark.anyio

FORMATS = ["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"]


@pytest.fixture
def ova(tmp_path: Path, stream_vmdk: Path) -> Path:
    """An appliance in a directory whose name qemu's options would split at the comma."""
    place = tmp_path / "a,b c"
    place.mkdir()
    disks = {"disk.vmdk": stream_vmdk.read_bytes(), "other.img": b"\1" * 4096}
    return pack(place / "vm.ova", appliance(disks, algorithm="sha256"))


@pytest.mark.parametrize("driver", FORMATS)
async def test_disk_inside_an_archive_converts_with_equal_content(
    bench: Bench, raw_disk: Path, tmp_path: Path, driver: str
) -> None:
    disk = convert_to(raw_disk, tmp_path / "disk", driver).read_bytes()
    path = pack(tmp_path / "vm.ova", appliance({"first": b"\1" * 700, "second": disk, "third": b"\2" * 700}))
    await bench.run("convert", path, parameters={"disk": "second"})
    qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", raw_disk, bench.out / "vm.qcow2")


async def test_disk_beside_a_descriptor_converts_with_equal_content(
    bench: Bench, raw_disk: Path, tmp_path: Path
) -> None:
    parts = convert_to(raw_disk, tmp_path / "disk.vmdk", "vmdk", "-o", "subformat=twoGbMaxExtentSparse")
    files = {each.name: each.read_bytes() for each in tmp_path.glob("disk*")}
    lay_out(tmp_path / "vm", {**appliance({parts.name: files[parts.name]}), **files})
    await bench.run("convert", tmp_path / "vm" / "vm.ovf")
    qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", raw_disk, bench.out / "vm.qcow2")


async def test_disk_inside_an_archive_is_inspected_like_any_image(bench: Bench, ova: Path) -> None:
    result = await bench.run("inspect", ova, parameters={"disk": "disk.vmdk"})
    facts = bench.read_report()["image"]
    assert (facts["container"], facts["member"], facts["other_disks"]) == ("ova", "disk.vmdk", ["other.img"])
    assert (facts["format"], facts["virtual_size"], facts["manifest"]) == ("vmdk", DISK_BYTES, ["sha256"])
    assert facts["actual_size"] == facts["file_bytes"] < ova.stat().st_size
    assert facts["check"]["verdict"] == "clean"
    assert [each["filesystem"] for each in facts["partition_table"]["partitions"]] == ["ext"]
    assert [each for each in result.warnings if not each.startswith("the guest was not looked into")] == []


async def test_report_tells_of_the_container_and_can_be_repeated_by_hand(bench: Bench, ova: Path) -> None:
    await bench.run("convert", ova, parameters={"disk": "disk.vmdk"})
    report = bench.read_report()
    assert report["image"]["member"] == "disk.vmdk"
    command = next(each for each in report["commands"] if " convert " in each)
    assert f'"filename":"{ova}"' in command
    assert re.search(r'"offset":\d+,"size":\d+', command)
    assert not any("/proc/" in each for each in report["commands"])


async def test_odd_sized_raw_disk_inside_an_archive_is_padded_to_whole_sectors(
    bench: Bench, tmp_path: Path
) -> None:
    path = pack(tmp_path / "vm.ova", appliance({"odd.img": b"\7" * 100_000}))
    await bench.run("convert", path, parameters={"output_format": "raw"})
    assert (bench.out / "vm.raw").read_bytes() == (b"\7" * 100_000).ljust(100_352, b"\0")


async def test_archive_changed_during_the_work_is_not_published(bench: Bench, ova: Path) -> None:
    bench.report.on_advance = lambda phase, fraction: ova.touch()
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", ova, parameters={"disk": "disk.vmdk"})
    assert caught.value.error_code is ErrorCode.IMAGE_UNSAFE
    assert bench.names() == []
