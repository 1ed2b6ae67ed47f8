"""A worker with roots reads and writes nothing outside, whatever a job names and whoever moves names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from h2kbus.errors import ErrorCode, OperationFailed, SettingsError
from subjects.builtin import BUILT_IN
from subjects.lease import Lease
from subjects.spec import ImageSpec
from tests.conftest import worker_profile
from tests.security.roots import CANARY, GOOD, Land, exchange, ignore
from tests.workers.conftest import Bench, lease_is_held
from tests.workers.hostile import descriptor
from workers.context import OperationResult
from workers.guest.attach import overlay
from workers.image import Gate, open_image
from workers.outputs import StagedFile
from workers.publication import clear_away, publish, recover
from workers.qemu import QemuImg
from workers.site import ANYWHERE, Site
from workers.workplace import Workplace, open_workplace

pytestmark = pytest.mark.anyio

OPERATIONS: Final = [each.name for each in BUILT_IN]
SECTOR: Final = 512


def outside(land: Land) -> Path:
    return land.canary


def upwards(land: Land) -> Path:
    return land.root / "images" / ".." / ".." / "outside" / "canary" / "disk.img"


def linked_file(land: Land) -> Path:
    (land.root / "link.img").symlink_to(land.canary)
    return land.root / "link.img"


def linked_directory(land: Land) -> Path:
    (land.root / "link").symlink_to(land.canary.parent)
    return land.root / "link" / "disk.img"


def linked_by_the_kernel(land: Land) -> Path:
    (land.root / "link").symlink_to("/proc/self/root")
    return Path(f"{land.root}/link{land.canary}")


IMAGES: Final = [outside, upwards, linked_file, linked_directory, linked_by_the_kernel]


def tools_that_ran(out: Path) -> list[str]:
    return [line for line in (out / "job-1.log").read_text().splitlines() if " run: " in line]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("path", IMAGES)
async def test_image_outside_is_refused_before_any_tool_runs(
    confined: Bench, land: Land, operation: str, path: Callable[[Land], Path]
) -> None:
    with pytest.raises(OperationFailed) as caught:
        await confined.run(operation, path(land))
    assert caught.value.error_code is ErrorCode.IMAGE_UNSAFE
    assert tools_that_ran(confined.out) == []
    assert confined.names() == []


async def test_refusal_names_the_roots(confined: Bench, land: Land) -> None:
    with pytest.raises(OperationFailed, match=f"serves only what is below {land.root}"):
        await confined.run("inspect", land.canary)


async def test_whether_a_file_exists_outside_is_not_told(confined: Bench, land: Land) -> None:
    words = []
    for name in ("disk.img", "nothing.img"):
        with pytest.raises(OperationFailed) as caught:
            await confined.run("inspect", land.canary.with_name(name))
        words.append(str(caught.value).replace(name, ""))
    assert words[0] == words[1]


def output_outside(land: Land) -> Path:
    return land.empty


def output_upwards(land: Land) -> Path:
    return land.root / ".." / "outside" / "empty"


def output_linked(land: Land) -> Path:
    (land.root / "link").symlink_to(land.empty)
    return land.root / "link"


def output_below_a_link(land: Land) -> Path:
    (land.root / "link").symlink_to(land.empty)
    return land.root / "link" / "made" / "for" / "it"


OUTPUTS: Final = [output_outside, output_upwards, output_linked, output_below_a_link]


@pytest.mark.parametrize("path", OUTPUTS)
async def test_output_outside_is_refused_and_nothing_is_made_there(
    confined: Bench, land: Land, path: Callable[[Land], Path]
) -> None:
    confined.out = path(land)
    with pytest.raises(OperationFailed, match="serves only what is below") as caught:
        await confined.run("convert", land.image)
    assert caught.value.error_code is ErrorCode.OUTPUT_UNWRITABLE
    assert land.is_untouched


@pytest.mark.parametrize("path", OUTPUTS)
async def test_what_a_lost_attempt_left_is_not_looked_for_outside(
    land: Land, path: Callable[[Land], Path]
) -> None:
    destination = land.site.destination(str(path(land)))
    (land.empty / ".h2kbus-job-1-1").mkdir()
    assert await recover(destination, "job-1", before=9) is None
    await clear_away(destination, "job-1", keep_outputs=False)
    assert [each.name for each in land.empty.iterdir()] == [".h2kbus-job-1-1"]


async def test_both_roots_are_served(confined: Bench, land: Land) -> None:
    await confined.run("convert", land.image, format="raw", parameters={"output_format": "raw"})
    assert (land.root / "out" / "disk.raw").read_bytes().startswith(GOOD)


async def test_nearest_of_several_roots_counts(land: Land, tmp_path: Path) -> None:
    """A root may be reached by a link, because the operator says so; below it, none is followed."""
    (tmp_path / "mounted").symlink_to(land.root)
    site = Site(image_roots=(tmp_path / "elsewhere", tmp_path / "mounted"))
    gate = Gate(scratch=tmp_path, site=site)
    async with open_image(ImageSpec(path=str(tmp_path / "mounted/images/disk.img")), ignore, gate) as image:
        assert image.size == len(GOOD)


async def disk_content(place: Workplace, gate: Gate, path: Path, then: Callable[[], None]) -> bytes:
    """What a tool reads of an image after something happened between the check and the use."""
    qemu = QemuImg(place.tools)
    async with open_image(ImageSpec(path=str(path)), ignore, gate) as image:
        disk = image.disk
        then()
        return await qemu.read(disk, 0, SECTOR)


def workplace_of(land: Land) -> Any:
    destination = land.site.destination(str(land.root / "out"))
    return open_workplace(destination, "job-1", Lease(worker_id="w", token=1), lambda: False)


@pytest.mark.parametrize("what", ["images", "images/disk.img"])
async def test_image_exchanged_after_the_check_is_not_what_is_read(land: Land, what: str) -> None:
    link = land.root / "link"
    link.symlink_to(land.canary.parent if what == "images" else land.canary)
    async with workplace_of(land) as place:
        gate = Gate(scratch=place.scratch, site=land.site)
        read = await disk_content(place, gate, land.image, lambda: exchange(land.root / what, link))
    assert read == GOOD[:SECTOR]


@pytest.mark.parametrize("what", ["images", "images/part"])
async def test_extent_exchanged_after_the_check_is_not_what_is_read(
    land: Land, tmp_path: Path, what: str
) -> None:
    """The other half of a VMDK, which qemu finds by its name."""
    size = len(CANARY) // SECTOR
    (land.canary.parent / "part").write_bytes(CANARY)
    (land.root / "images" / "part").write_bytes(GOOD)
    image = descriptor(f'RW {size} FLAT "part" 0')(land.root / "images", land.image)
    link = land.root / "link"
    link.symlink_to(land.canary.parent / ("" if what == "images" else "part"))
    async with workplace_of(land) as place:
        gate = Gate(scratch=place.scratch, site=land.site)
        read = await disk_content(place, gate, image, lambda: exchange(land.root / what, link))
    assert read == GOOD[:SECTOR]


async def test_layer_over_an_image_reads_what_was_checked(land: Land) -> None:
    """What repairs and inspections of guests open is a layer that names its source."""
    link = land.root / "link"
    link.symlink_to(land.canary.parent)
    async with workplace_of(land) as place:
        gate = Gate(scratch=place.scratch, site=land.site)
        async with (
            open_image(ImageSpec(path=str(land.image)), ignore, gate) as image,
            overlay(place, image.disk) as layer,
        ):
            exchange(land.root / "images", link)
            read = await QemuImg(place.tools).read(layer, 0, SECTOR)
    assert read == GOOD[:SECTOR]


async def test_results_go_where_the_directory_was_that_was_opened(land: Land) -> None:
    link = land.root / "link"
    link.symlink_to(land.empty)
    destination = land.site.destination(str(land.root / "out"))
    async with workplace_of(land) as place:
        exchange(land.root / "out", link)
        await place.tools.run(["qemu-img", "create", "-q", "-f", "raw", "--", "file:made", "1M"])
        staged = StagedFile(place.scratch / "made", land.root / "out" / "made")
        publication = await publish(
            destination, place.output, place.private, [staged], OperationResult(), lease_is_held
        )
    assert (link / "made").stat().st_size == 1 << 20
    await publication.withdraw()
    assert land.is_untouched


@pytest.mark.parametrize(
    ("site", "doors"),
    [
        (ANYWHERE, ("reads images of any path", "writes results to any path")),
        (Site(image_roots=(Path("/srv"),)), ("writes results to any path",)),
        (Site(image_roots=(Path("/srv"),), output_roots=(Path("/srv"),)), ()),
    ],
)
def test_worker_tells_the_fleet_which_doors_are_open(site: Site, doors: tuple[str, ...]) -> None:
    assert site.described(worker_profile("w")).open_doors == doors


def test_root_that_is_no_directory_is_refused_at_the_start(land: Land) -> None:
    with pytest.raises(SettingsError, match="not the absolute path of a directory"):
        Site.of([land.image], [], 0)
