"""A comparison in parts finds what one in a single go finds: any byte, wherever it is."""

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.spec import ImageFormat
from tests.workers.conftest import MIB, convert_to, processes_below
from workers.comparison import GRAIN, Comparison, parts_of, require_same_content
from workers.formats import FORMATS
from workers.formats.header import Window
from workers.joblog import JobLog
from workers.process import ToolRunner
from workers.qemu import Disk, Part, QemuImg

pytestmark = pytest.mark.anyio

SIZE = 17 * MIB + 700
"""Neither whole parts nor whole clusters, nor even whole sectors."""

HOW = Comparison(parts=4, at_once=2)
BORDER = 6 * MIB
"""Where the second of the four parts begins."""

TARGETS: dict[str, tuple[ImageFormat, tuple[str, ...]]] = {
    "raw": ("raw", ()),
    "plain": ("qcow2", ()),
    "compressed": ("qcow2", ("-c",)),
    "vmdk": ("vmdk", ()),
    "stream": ("vmdk", ("-o", "subformat=streamOptimized")),
    "vdi": ("vdi", ()),
    "vhd": ("vhd", ()),
    "vhdx": ("vhdx", ()),
}
PLACES = {
    "first byte": 0,
    "data": 3 * MIB + 17,
    "zeros": 9 * MIB + 4097,
    "before a border": BORDER - 1,
    "after a border": BORDER,
    "last partial cluster": 17 * MIB + 5,
    "last byte": SIZE - 1,
}


def content() -> bytearray:
    """Data, zeros from 8 to 14 MiB, and data again."""
    return bytearray(os.urandom(8 * MIB) + bytes(6 * MIB) + os.urandom(SIZE - 14 * MIB))


Content = bytes | bytearray


class Pair:
    """Two disks in one place, the second a file of the scratch directory as results are."""

    def __init__(self, place: Path, scratch: Path, log: JobLog) -> None:
        self.place = place
        self.scratch = scratch
        self.qemu = QemuImg(ToolRunner(log, scratch, confined=True))
        self.fractions: list[float] = []
        self.layered = False
        self.window: Window | None = None

    def write(self, source: Content, target: Content, image_format: ImageFormat, *options: str) -> None:
        (self.place / "source.raw").write_bytes(source)
        (self.place / "target.raw").write_bytes(target)
        convert_to(self.place / "target.raw", self.scratch / "output", FORMATS[image_format].qemu, *options)
        self.format = image_format

    async def require_found(self, target: str, place: int, changed: str) -> None:
        disks = {"source": content()}
        disks["target"] = disks["source"].copy()
        disks[changed][place] ^= 1
        self.write(disks["source"], disks["target"], TARGETS[target][0], *TARGETS[target][1])
        with pytest.raises(OperationFailed) as caught:
            await self.compare()
        assert caught.value.error_code is ErrorCode.CONTENT_MISMATCH

    def put_layer_over_target(self) -> None:
        (self.scratch / "output").rename(self.scratch / "below")
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "below", "output"]
        subprocess.run(argv, check=True, cwd=self.scratch, timeout=60)
        self.layered = True

    def put_source_into_archive(self) -> None:
        """Between foreign bytes, as in a tar file."""
        source = self.place / "source.raw"
        inside = source.read_bytes()
        source.write_bytes(os.urandom(512) + inside + os.urandom(1024))
        self.window = Window(512, len(inside))

    async def compare(self, how: Comparison = HOW) -> None:
        descriptor = os.open(self.place / "source.raw", os.O_RDONLY)
        try:
            path = self.place / "source.raw"
            source = Disk(path=path, format="raw", descriptor=descriptor, window=self.window)
            path = self.scratch / "output"
            target = Disk(
                path=path, inside="output", format=self.format, made_here=True, layered=self.layered
            )
            size = self.window.size if self.window else (self.place / "source.raw").stat().st_size
            await require_same_content(self.qemu, source, target, size, how, self.fractions.append)
        finally:
            os.close(descriptor)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with JobLog(tmp_path / "log") as log:
        yield Pair(tmp_path, scratch, log)
    assert processes_below(scratch) == []


@pytest.mark.parametrize("target", TARGETS)
async def test_equal_disks_are_equal(pair: Pair, target: str) -> None:
    same = content()
    pair.write(same, same, TARGETS[target][0], *TARGETS[target][1])
    await pair.compare()
    assert pair.fractions[-1] == pytest.approx(1.0)
    assert pair.fractions == sorted(pair.fractions)


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["source", "target"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", ["plain", "compressed"])
async def test_one_flipped_byte_is_found(pair: Pair, target: str, place: str, changed: str) -> None:
    await pair.require_found(target, PLACES[place], changed)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["zeros", "after a border", "last byte"])
@pytest.mark.parametrize("target", TARGETS)
async def test_one_flipped_byte_is_found_in_every_format(pair: Pair, target: str, place: str) -> None:
    await pair.require_found(target, PLACES[place], "target")


async def test_data_beyond_the_smaller_disk_is_found(pair: Pair) -> None:
    same = content()
    pair.write(same, bytes(same) + bytes(4 * MIB) + b"more", "qcow2")
    with pytest.raises(OperationFailed) as caught:
        await pair.compare()
    assert caught.value.error_code is ErrorCode.CONTENT_MISMATCH


async def test_zeros_beyond_the_smaller_disk_are_no_difference(pair: Pair) -> None:
    same = content()
    pair.write(same, bytes(same) + bytes(4 * MIB), "qcow2")
    await pair.compare()


async def test_target_that_ends_early_is_no_success(pair: Pair) -> None:
    same = content()
    pair.write(same, bytes(same[: 7 * MIB]), "qcow2")
    with pytest.raises(OperationFailed):
        await pair.compare()


async def test_source_inside_an_archive_is_compared_by_its_own_offsets(pair: Pair) -> None:
    same = content()[: 17 * MIB]
    pair.write(same, same, "qcow2")
    pair.put_source_into_archive()
    await pair.compare()


async def test_last_byte_of_a_source_inside_an_archive_counts(pair: Pair) -> None:
    source = content()[: 17 * MIB]
    target = source.copy()
    target[-1] ^= 1
    pair.write(source, target, "qcow2")
    pair.put_source_into_archive()
    with pytest.raises(OperationFailed) as caught:
        await pair.compare()
    assert caught.value.error_code is ErrorCode.CONTENT_MISMATCH


async def test_layer_equals_what_is_below_it(pair: Pair) -> None:
    same = content()
    pair.write(same, same, "qcow2")
    pair.put_layer_over_target()
    await pair.compare()


async def test_flipped_byte_below_a_layer_is_found(pair: Pair) -> None:
    below = bytearray(SIZE)
    below[PLACES["zeros"]] = 1
    pair.write(bytes(SIZE), below, "qcow2")
    pair.put_layer_over_target()
    with pytest.raises(OperationFailed) as caught:
        await pair.compare()
    assert caught.value.error_code is ErrorCode.CONTENT_MISMATCH


def test_part_of_a_layered_disk_cannot_be_named(tmp_path: Path) -> None:
    layered = Disk(path=tmp_path, format="qcow2", inside="layer", made_here=True, layered=True)
    with pytest.raises(ValueError, match="layers"):
        layered.only(Part(0))


async def test_every_part_is_asked_for_by_a_tool_of_its_own(pair: Pair) -> None:
    same = content()
    pair.write(same, same, "raw")
    await pair.compare()
    assert len(pair.qemu.commands) == len(parts_of(SIZE, HOW.parts))


@pytest.mark.slow
async def test_cancelling_leaves_none_of_the_comparisons(pair: Pair) -> None:
    same = os.urandom(MIB) * 64
    pair.write(same, same, "qcow2", "-c")
    with anyio.CancelScope() as scope:
        pair.fractions = _Cancelling(scope)
        await pair.compare(Comparison(parts=8, at_once=4))
    assert scope.cancelled_caught
    assert processes_below(pair.scratch) == []


class _Cancelling(list[float]):
    def __init__(self, scope: anyio.CancelScope) -> None:
        super().__init__()
        self._scope = scope

    def append(self, fraction: float) -> None:
        if fraction > 0:
            self._scope.cancel()


@given(size=st.integers(1, 1 << 46), count=st.integers(1, 64))
def test_parts_are_together_the_whole_disk_and_meet_without_gap(size: int, count: int) -> None:
    parts = [each or Part(0) for each in parts_of(size, count)]
    ends = [each.offset + (each.size or 0) for each in parts]
    assert [each.offset for each in parts] == [0, *ends[:-1]]
    assert parts[-1].size is None
    assert parts[-1].offset < size
    assert len(parts) <= count


@given(size=st.integers(1, 1 << 46), count=st.integers(1, 64))
def test_parts_begin_where_no_cluster_is_cut(size: int, count: int) -> None:
    assert all(each is None or each.offset % GRAIN == 0 for each in parts_of(size, count))
