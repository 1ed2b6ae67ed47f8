"""What a conversion runs, why, and what its proof finds."""

import os
import shlex
from pathlib import Path
from typing import IO

import anyio
import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.workers.conftest import (
    Bench,
    RecordingReport,
    convert_to,
    processes_below,
    qemu_img,
    same_content,
)
from workers import writeback
from workers.writeback import begin_writeback

pytestmark = pytest.mark.anyio

MATRIX = {
    "raw": ("raw", ()),
    "vmdk": ("vmdk", ()),
    "vmdk-stream": ("vmdk", ("-o", "subformat=streamOptimized")),
    "vhdx": ("vhdx", ()),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("source", MATRIX)
async def test_every_cell_of_the_matrix_is_sound_and_equal(
    bench: Bench, raw_disk: Path, tmp_path: Path, source: str, compress: bool
) -> None:
    driver, options = MATRIX[source]
    image = convert_to(raw_disk, tmp_path / f"disk.{driver}", driver, *options)
    await bench.run("convert", image, parameters={"compress": compress, "output_name": "result"})
    qemu_img("check", "-f", "qcow2", bench.out / "result")
    assert same_content(raw_disk, "raw", bench.out / "result", "qcow2")


@pytest.mark.parametrize(("source", "in_order"), [("vmdk", False), ("vmdk-stream", True)])
async def test_source_that_has_to_be_unpacked_is_read_in_order(
    bench: Bench, raw_disk: Path, tmp_path: Path, source: str, in_order: bool
) -> None:
    driver, options = MATRIX[source]
    image = convert_to(raw_disk, tmp_path / "disk.vmdk", driver, *options)
    await bench.run("convert", image, actions=("convert",), parameters={"compress": False})
    (converted,) = [each for each in bench.read_report()["commands"] if "convert" in each]
    assert ("-W" not in shlex.split(converted)) is in_order


@pytest.mark.parametrize("kept", [True, False])
async def test_result_goes_to_the_disk_while_it_is_written_if_it_is_to_be_kept(
    bench: Bench, raw_disk: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    begun = []

    def begin(file: IO[bytes]) -> bool:
        begun.append(file.name)
        return begin_writeback(file)

    monkeypatch.setattr(writeback, "INTERVAL_SECONDS", 0.001)
    monkeypatch.setattr(writeback, "begin_writeback", begin)
    await bench.run("convert", raw_disk, parameters={"compress": True}, artifacts={"store_fixed_image": kept})
    assert bool(begun) is kept


def verbs(bench: Bench) -> list[str]:
    """What qemu-img was run for, except its version, which a worker asks for once."""
    runs = [shlex.split(each)[1] for each in bench.read_report()["commands"]]
    return sorted(each for each in runs if each != "--version")


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
async def test_disk_without_any_content_is_converted_and_proven(
    bench: Bench, tmp_path: Path, kind: str
) -> None:
    empty = tmp_path / "empty.raw"
    empty.touch()
    image = convert_to(empty, tmp_path / "empty.qcow2", "qcow2")
    await bench.run("convert", image, parameters={"output_format": kind, "output_name": "result"})
    assert "compare" in verbs(bench)


@pytest.mark.parametrize(
    ("source", "target", "runs"),
    [
        ("vmdk", "qcow2", ["check", "compare", "convert", "info", "info", "info"]),
        ("vmdk", "raw", ["compare", "convert", "info", "info", "info"]),
        ("raw", "vhd", ["compare", "convert", "info", "info", "info"]),
        ("qcow2", "raw", ["check", "compare", "convert", "info", "info", "info"]),
    ],
)
async def test_tools_run_exactly_so_often(
    bench: Bench, raw_disk: Path, tmp_path: Path, source: str, target: str, runs: list[str]
) -> None:
    image = convert_to(raw_disk, tmp_path / f"disk.{source}", source)
    await bench.run("convert", image, parameters={"output_format": target, "output_name": "result"})
    assert verbs(bench) == runs


async def test_version_is_asked_for_once_and_stands_in_every_report(
    bench: Bench, vmdk: Path, tmp_path: Path
) -> None:
    await bench.run("convert", vmdk)
    again = Bench(tmp_path / "again")
    await again.run("convert", vmdk)
    assert not any("--version" in each for each in again.read_report()["commands"])
    assert again.read_report()["tools"] == bench.read_report()["tools"] != {}


async def test_proof_left_out_runs_no_tool(bench: Bench, vmdk: Path) -> None:
    await bench.run("convert", vmdk, actions=("convert",))
    assert verbs(bench) == ["convert", "info", "info", "info"]


async def test_log_says_what_was_chosen_and_why(bench: Bench, vmdk: Path) -> None:
    await bench.run("convert", vmdk)
    log = (bench.out / "job-1.log").read_text()
    assert "convert: 8 coroutines, out of order: clusters are compressed" in log
    assert "compare: in one go: there is too little content" in log


async def test_phases_come_in_their_order(bench: Bench, vmdk: Path) -> None:
    await bench.run("convert", vmdk)
    assert bench.report.phases == ["probe", "convert", "check", "compare", "publish"]


@pytest.mark.parametrize("place", [0, 24 << 20, (48 << 20) - 1])
async def test_byte_that_changes_before_the_proof_is_found(bench: Bench, vmdk: Path, place: int) -> None:
    bench.report = _Saboteur(bench, place)
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", vmdk, parameters={"output_format": "raw"})
    assert caught.value.error_code is ErrorCode.CONTENT_MISMATCH
    assert bench.names() == []


class _Saboteur(RecordingReport):
    """Flips one byte of the result when its proof begins."""

    def __init__(self, bench: Bench, place: int) -> None:
        super().__init__()
        self._bench = bench
        self._place = place

    def enter(self, phase: str, message: str = "") -> None:
        super().enter(phase, message)
        if phase == "check":
            (output,) = self._bench.out.glob(".h2kbus-*/output")
            with output.open("r+b") as file:
                file.seek(self._place)
                byte = file.read(1)[0]
                file.seek(self._place)
                file.write(bytes([byte ^ 1]))


@pytest.mark.slow
async def test_cancelling_a_proof_in_parts_leaves_no_process_and_no_file(
    bench: Bench, tmp_path: Path
) -> None:
    raw = tmp_path / "large.img"
    with raw.open("wb") as file:
        for _ in range(160):
            file.write(os.urandom(1 << 20))
    image = convert_to(raw, tmp_path / "large.vmdk", "vmdk", "-o", "subformat=streamOptimized")
    with anyio.CancelScope() as scope:

        def cancel(phase: str, fraction: float) -> None:
            if phase == "compare" and 0 < fraction < 1:
                scope.cancel()

        bench.report.on_advance = cancel
        await bench.run("convert", image, parameters={"compress": False})
    assert scope.cancelled_caught
    assert bench.names() == []
    assert not processes_below(bench.out)
