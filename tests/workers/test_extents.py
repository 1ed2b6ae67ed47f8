"""A VMDK in several files: the descriptor, and plain extents beside it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.workers.conftest import DISK_BYTES, MIB, Bench, qemu_img
from tests.workers.hostile import descriptor

pytestmark = pytest.mark.anyio

SIZES = (16 * MIB, 24 * MIB, DISK_BYTES - 40 * MIB)


@pytest.fixture
def image(raw_disk: Path, tmp_path: Path) -> Path:
    """The disk cut into three files."""
    data, at, lines = raw_disk.read_bytes(), 0, []
    for number, size in enumerate(SIZES):
        name = f"image-f{number}.vmdk"
        (tmp_path / name).write_bytes(data[at : at + size])
        lines.append(f'RW {size // 512} FLAT "{name}" 0')
        at += size
    path = descriptor(*lines)(tmp_path, raw_disk)
    path.write_text(path.read_text().replace("monolithicFlat", "twoGbMaxExtentFlat"))
    return path


async def refusal(bench: Bench, image: Path) -> ErrorCode:
    with pytest.raises(OperationFailed) as caught:
        await bench.run("convert", image)
    assert bench.names() == []
    return caught.value.error_code


async def test_several_extents_convert_with_equal_content(bench: Bench, raw_disk: Path, image: Path) -> None:
    await bench.run("convert", image)
    qemu_img("compare", "-q", "-f", "raw", "-F", "qcow2", raw_disk, bench.out / "image.qcow2")


async def test_missing_extent(bench: Bench, image: Path) -> None:
    image.with_name("image-f1.vmdk").unlink()
    assert await refusal(bench, image) is ErrorCode.IMAGE_NOT_FOUND


async def test_extent_that_is_cut_short(bench: Bench, image: Path) -> None:
    os.truncate(image.with_name("image-f2.vmdk"), SIZES[2] - 512)
    assert await refusal(bench, image) is ErrorCode.IMAGE_CORRUPT


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
async def test_extent_that_is_no_regular_file(
    bench: Bench, image: Path, make: Callable[[Path], None]
) -> None:
    extent = image.with_name("image-f1.vmdk")
    extent.unlink()
    make(extent)
    assert await refusal(bench, image) is ErrorCode.IMAGE_UNSAFE


def touch(extent: Path) -> None:
    os.utime(extent)


def exchange(extent: Path) -> None:
    """Another file of the same content and times under the name."""
    status, other = extent.stat(), extent.with_suffix(".new")
    other.write_bytes(extent.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(extent)


def exchange_and_undo(extent: Path) -> None:
    """Somebody else's file for a moment, then the old one again."""
    extent.rename(extent.with_suffix(".old"))
    extent.symlink_to("/etc/passwd")
    extent.with_suffix(".old").rename(extent)


@pytest.mark.parametrize("change", [touch, exchange, exchange_and_undo, Path.unlink])
async def test_extent_exchanged_while_it_is_read_is_not_published(
    bench: Bench, image: Path, change: Callable[[Path], None]
) -> None:
    todo = [change]

    def interfere(phase: str, fraction: float) -> None:
        if phase in {"convert", "compare"} and fraction > 0 and todo:
            todo.pop()(image.with_name("image-f1.vmdk"))

    bench.report.on_advance = interfere
    assert await refusal(bench, image) is ErrorCode.IMAGE_UNSAFE
