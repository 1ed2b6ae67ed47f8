import os
import subprocess
from pathlib import Path

import anyio
import pytest

from h2kbus.errors import AttemptStopped, ErrorCode, OperationFailed
from tests.workers.conftest import Bench, convert_to, processes_below, qemu_img, same_content

pytestmark = pytest.mark.anyio

DRIVERS = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx"}


@pytest.mark.parametrize("target", DRIVERS)
async def test_vmdk_becomes_any_format_with_equal_content(
    bench: Bench, vmdk: Path, raw_disk: Path, target: str
) -> None:
    result = await bench.run("convert", vmdk, parameters={"output_format": target, "output_name": "result"})
    assert result.outputs.fixed_image == str(bench.out / "result")
    assert same_content(raw_disk, "raw", bench.out / "result", DRIVERS[target])


@pytest.mark.parametrize("source", DRIVERS)
async def test_any_format_becomes_raw_with_equal_content(
    bench: Bench, raw_disk: Path, tmp_path: Path, source: str
) -> None:
    image = convert_to(raw_disk, tmp_path / f"source.{source}", DRIVERS[source])
    await bench.run("convert", image, parameters={"output_format": "raw"}, format=source)
    assert same_content(raw_disk, "raw", bench.out / "source.raw", "raw")


async def test_stream_optimized_vmdk_goes_both_ways(bench: Bench, stream_vmdk: Path, raw_disk: Path) -> None:
    parameters = {"output_format": "vmdk", "subformat": "streamOptimized", "output_name": "again.vmdk"}
    await bench.run("convert", stream_vmdk, parameters=parameters)
    assert same_content(raw_disk, "raw", bench.out / "again.vmdk", "vmdk")


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
async def test_vmdk_of_several_files_is_read_from_its_own_directory(
    bench: Bench, raw_disk: Path, tmp_path: Path, subformat: str
) -> None:
    image = convert_to(raw_disk, tmp_path / "many.vmdk", "vmdk", "-o", f"subformat={subformat}")
    await bench.run("convert", image)
    assert same_content(raw_disk, "raw", bench.out / "many.qcow2", "qcow2")


@pytest.mark.parametrize("target", ["qcow2", "vhd", "vdi", "vmdk"])
async def test_odd_sized_raw_disk_is_equal_but_for_rounding(
    bench: Bench, tmp_path: Path, target: str
) -> None:
    image = tmp_path / "odd.img"
    image.write_bytes(os.urandom(3 * 1024 * 1024 + 700))
    await bench.run("convert", image, parameters={"output_format": target, "output_name": "odd"})
    assert same_content(image, "raw", bench.out / "odd", DRIVERS[target])


async def test_report_has_one_line_per_action(bench: Bench, vmdk: Path) -> None:
    await bench.run("convert", vmdk)
    actions = {each["action"]: each["outcome"] for each in bench.read_report()["actions"]}
    assert actions == {"convert": "applied", "check": "applied", "compare": "applied"}


async def test_action_left_out_is_reported_as_skipped(bench: Bench, vmdk: Path) -> None:
    await bench.run("convert", vmdk, actions=("convert",))
    actions = {each["action"]: each["outcome"] for each in bench.read_report()["actions"]}
    assert actions == {"convert": "applied", "check": "skipped", "compare": "skipped"}


async def test_progress_comes_from_the_tool_and_reaches_the_end(bench: Bench, vmdk: Path) -> None:
    await bench.run("convert", vmdk)
    fractions = [fraction for phase, fraction in bench.report.fractions if phase == "convert"]
    assert fractions[-1] == 1.0
    assert len(set(fractions)) > 2
    assert fractions == sorted(fractions)


async def test_image_is_not_kept_when_the_job_says_so(bench: Bench, vmdk: Path) -> None:
    result = await bench.run("convert", vmdk, artifacts={"store_fixed_image": False})
    assert result.outputs.fixed_image is None
    assert bench.names() == ["job-1.report.json"]


async def test_intermediates_are_kept_when_the_job_says_so(bench: Bench, vmdk: Path) -> None:
    result = await bench.run("convert", vmdk, artifacts={"keep_intermediates": True})
    assert result.outputs.intermediates
    assert all(Path(each).exists() for each in result.outputs.intermediates)


async def test_matching_checksum_and_size_are_accepted(bench: Bench, vmdk: Path) -> None:
    digest = subprocess.run(["sha256sum", vmdk], check=True, capture_output=True, text=True).stdout.split()[0]
    await bench.run("convert", vmdk, checksum=f"sha256:{digest.upper()}", size_bytes=vmdk.stat().st_size)
    assert bench.read_report()["image"]["sha256"] == digest


async def test_taken_name_is_refused_before_any_work_and_left_alone(bench: Bench, vmdk: Path) -> None:
    bench.out.mkdir()
    (bench.out / "disk.qcow2").write_text("mine")
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", vmdk)
    assert caught.value.error_code is ErrorCode.OUTPUT_EXISTS
    assert bench.report.phases == []
    assert (bench.out / "disk.qcow2").read_text() == "mine"


async def test_name_taken_during_the_work_is_left_alone(bench: Bench, vmdk: Path) -> None:
    async def somebody_is_faster() -> None:
        (bench.out / "disk.qcow2").write_text("theirs")

    bench.guard = somebody_is_faster
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", vmdk)
    assert caught.value.error_code is ErrorCode.OUTPUT_EXISTS
    assert (bench.out / "disk.qcow2").read_text() == "theirs"
    assert bench.names() == ["disk.qcow2"]


async def test_lost_lease_makes_nothing_visible(bench: Bench, vmdk: Path) -> None:
    async def lease_is_lost() -> None:
        raise AttemptStopped(ErrorCode.LEASE_LOST, "the lease is lost")

    bench.guard = lease_is_lost
    with pytest.raises(AttemptStopped):
        await bench.run("convert", vmdk)
    assert bench.names() == []


async def test_source_changed_during_the_work_is_not_published(
    bench: Bench, vmdk: Path, tmp_path: Path
) -> None:
    image = tmp_path / "changing.vmdk"
    image.write_bytes(vmdk.read_bytes())
    bench.report.on_advance = lambda phase, fraction: os.utime(image)
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", image)
    assert caught.value.error_code is ErrorCode.IMAGE_UNSAFE
    assert bench.names() == []


async def test_full_disk_is_no_space_and_leaves_nothing(bench: Bench, vmdk: Path, small_disk: Path) -> None:
    bench.out = small_disk / "out"
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", vmdk, parameters={"compress": False})
    assert caught.value.error_code is ErrorCode.NO_SPACE
    assert bench.names() == []


def may_not_fit(warnings: tuple[str, ...]) -> bool:
    return any("are free" in each for each in warnings)


@pytest.mark.parametrize("target", ["raw", "qcow2", "vmdk"])
async def test_sparse_disk_larger_than_the_free_space_is_no_reason_to_warn(
    bench: Bench, tmp_path: Path, small_disk: Path, target: str
) -> None:
    image = tmp_path / "sparse.img"
    image.write_bytes(os.urandom(1 << 20))
    os.truncate(image, 1 << 30)
    bench.out = small_disk / "out"
    parameters = {"output_format": target, "compress": False, "output_name": "result"}
    assert not may_not_fit((await bench.run("convert", image, parameters=parameters)).warnings)


async def test_stored_zeros_that_may_not_fit_are_warned_about_and_not_refused(
    bench: Bench, tmp_path: Path, small_disk: Path
) -> None:
    image = tmp_path / "zeros.img"
    image.write_bytes(bytes(20 << 20))
    bench.out = small_disk / "out"
    assert may_not_fit((await bench.run("convert", image, parameters={"output_format": "raw"})).warnings)


@pytest.mark.slow
async def test_cancelling_in_the_middle_leaves_no_process_and_no_file(bench: Bench, tmp_path: Path) -> None:
    image = tmp_path / "large.img"
    with image.open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(1 << 20) + bytes(range(256)) * 4096)
    with anyio.CancelScope() as scope:

        def cancel(phase: str, fraction: float) -> None:
            if 0 < fraction < 1:
                scope.cancel()

        bench.report.on_advance = cancel
        await bench.run("convert", image)
    assert scope.cancelled_caught
    assert bench.names() == []
    assert not processes_below(bench.out)


@pytest.mark.parametrize("driver", ["vmdk", "vdi", "vhdx", "vpc", "qcow2"])
async def test_image_without_its_end_never_converts(
    bench: Bench, raw_disk: Path, tmp_path: Path, driver: str
) -> None:
    image = convert_to(raw_disk, tmp_path / f"cut.{driver.replace('vpc', 'vhd')}", driver)
    os.truncate(image, image.stat().st_size - 100_000)
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", image)
    assert caught.value.error_code is ErrorCode.IMAGE_CORRUPT
    assert bench.names() == []


@pytest.mark.parametrize("kept", [0.25, 0.5, 0.75, 0.98])
async def test_stream_without_its_end_never_converts(
    bench: Bench, stream_vmdk: Path, tmp_path: Path, kept: float
) -> None:
    image = tmp_path / "cut.vmdk"
    image.write_bytes(stream_vmdk.read_bytes()[: int(stream_vmdk.stat().st_size * kept)])
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", image)
    assert caught.value.error_code is ErrorCode.IMAGE_CORRUPT


async def test_internal_snapshots_that_the_job_allows_are_warned_about(
    bench: Bench, raw_disk: Path, tmp_path: Path
) -> None:
    image = convert_to(raw_disk, tmp_path / "snap.qcow2", "qcow2")
    qemu_img("snapshot", "-c", "before", image)
    result = await bench.run("convert", image, parameters={"output_format": "raw", "allow_snapshots": True})
    assert any("snapshot" in each for each in result.warnings)


async def test_report_can_be_repeated_by_hand(bench: Bench, vmdk: Path) -> None:
    await bench.run("convert", vmdk)
    report = bench.read_report()
    assert f'"filename":"{vmdk}"' in next(each for each in report["commands"] if " convert " in each)
    assert not any("/proc/" in each for each in report["commands"])
    assert "qemu-img" in report["tools"]
