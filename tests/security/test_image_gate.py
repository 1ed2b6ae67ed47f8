"""Every operation takes its image through the same gate, which says what it let through by a job's word."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import BUILT_IN
from subjects.lease import Lease
from subjects.spec import ImageSpec
from tests.conftest import environment
from tests.security.roots import Land
from tests.workers.conftest import MIB, Bench, convert_to, qemu_img
from tests.workers.hostile import Maker, talkative, written
from tests.workers.test_hostile import CASES
from workers.chain import MAX_LAYERS
from workers.guest.attach import overlay
from workers.image import Gate, open_image
from workers.qemu import QemuImg
from workers.site import Destination, Site
from workers.workplace import open_workplace

pytestmark = pytest.mark.anyio

OPERATIONS: Final = [each.name for each in BUILT_IN]
READERS: Final = [each for each in OPERATIONS if each != "inspect"]
CHAIN: Final = {"allow_backing_chain": True}
RAW: Final = {"output_format": "raw"}
DISK_BYTES: Final = MIB
_CLOOP: Final = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
HOSTILE: Final = [
    pytest.param(make, code, id=f"{number}: {name}")
    for number, cases in CASES.items()
    for name, make, code in cases[:1]
]
"""The first of each class: `tests/workers/test_hostile.py` takes all of them through one operation."""


def tools_that_ran(out: Path) -> list[str]:
    return [line for line in (out / "job-1.log").read_text().splitlines() if " run: " in line]


async def refusal(bench: Bench, operation: str, image: Path, **more: Any) -> OperationFailed:
    with pytest.raises(OperationFailed) as caught:
        await bench.run(operation, image, **more)
    assert bench.names() == []
    return caught.value


@pytest.mark.parametrize("operation", READERS)
@pytest.mark.parametrize(("make", "code"), HOSTILE)
async def test_no_operation_lets_a_tool_read_a_hostile_image(
    bench: Bench, raw_disk: Path, vmdk: Path, tmp_path: Path, operation: str, make: Maker, code: ErrorCode
) -> None:
    (tmp_path / "base.vmdk").symlink_to(vmdk)
    assert (await refusal(bench, operation, make(tmp_path, raw_disk))).error_code is code
    assert tools_that_ran(bench.out) == []


@pytest.mark.parametrize(("make", "code"), HOSTILE)
async def test_inspection_tells_of_a_hostile_image_and_lets_no_tool_read_it(
    bench: Bench, raw_disk: Path, vmdk: Path, tmp_path: Path, make: Maker, code: ErrorCode
) -> None:
    """What has a header is described by it; what has none is refused."""
    (tmp_path / "base.vmdk").symlink_to(vmdk)
    assert code in await told(bench, make(tmp_path, raw_disk))
    assert tools_that_ran(bench.out) == []


async def told(bench: Bench, image: Path) -> list[str]:
    """The codes by which an inspection ends, or those in its report."""
    try:
        await bench.run("inspect", image)
    except OperationFailed as error:
        return [error.error_code]
    return [each["code"] for each in bench.read_report()["image"]["findings"]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small raw disk with something to recognise in it."""
    path = tmp_path / "base.img"
    path.write_bytes(b"the base of it all".ljust(512, b".") * (DISK_BYTES // 512))
    return path


def layer(path: Path, below: Path | str, form: str | None = "raw", *, unsafe: bool = False) -> Path:
    """A qcow2 over another file; `unsafe` does not look whether there is one."""
    flags = ["-u"] if unsafe else []
    qemu_img("create", "-q", "-f", "qcow2", *flags, "-b", below, "-F", form or "raw", path, str(DISK_BYTES))
    if form is None:
        data = bytearray(path.read_bytes())
        at = data.index(bytes.fromhex("e2792aca"))
        data[at : at + 4] = bytes.fromhex("12345678")
        path.write_bytes(data)
    return path


async def test_chain_is_refused_and_the_refusal_names_the_option(bench: Bench, base: Path) -> None:
    error = await refusal(bench, "convert", layer(base.with_name("top.qcow2"), "base.img"))
    assert error.error_code is ErrorCode.IMAGE_UNSAFE
    assert "parameters.allow_backing_chain" in str(error)


async def test_allowed_chain_is_read_to_its_base(bench: Bench, base: Path) -> None:
    middle = layer(base.with_name("middle.qcow2"), "base.img")
    top = layer(base.with_name("top.qcow2"), middle, "qcow2")
    result = await bench.run("convert", top, parameters=RAW | CHAIN)
    assert (bench.out / "top.raw").read_bytes() == base.read_bytes()
    assert any("allowed by parameters.allow_backing_chain" in each for each in result.warnings)
    assert "allowed by parameters.allow_backing_chain" in (bench.out / "job-1.log").read_text()


async def test_tool_is_told_every_member_of_a_chain_with_its_format(bench: Bench, base: Path) -> None:
    middle = layer(base.with_name("middle.qcow2"), "base.img")
    await bench.run("convert", layer(base.with_name("top.qcow2"), middle, "qcow2"), parameters=CHAIN)
    [command] = [each for each in bench.read_report()["commands"] if " convert " in each]
    assert command.count('"driver":"qcow2"') == 2
    assert command.count('"driver":"raw"') == 1


async def test_inspection_of_an_allowed_chain_names_its_members(bench: Bench, base: Path) -> None:
    top = layer(base.with_name("top.qcow2"), "base.img")
    await bench.run("inspect", top, parameters=CHAIN)
    facts = bench.read_report()["image"]
    assert facts["backing_chain"] == [str(base)]
    assert facts["findings"] == []
    assert facts["virtual_size"] == DISK_BYTES


def outside(land: Land) -> str:
    return str(land.canary)


def upwards(land: Land) -> str:
    return "../../outside/canary/disk.img"


def by_a_link(land: Land) -> str:
    (land.root / "link").symlink_to(land.canary.parent)
    return str(land.root / "link" / "disk.img")


def by_json(land: Land) -> str:
    return f'json:{{"driver":"raw","file.filename":"{land.canary}"}}'


def by_protocol(land: Land) -> str:
    return "nbd:127.0.0.1:10809"


@pytest.mark.parametrize("name", [outside, upwards, by_a_link, by_json, by_protocol])
async def test_allowed_chain_does_not_leave_the_root(
    confined: Bench, land: Land, name: Callable[[Land], str]
) -> None:
    top = layer(land.root / "images" / "top.qcow2", name(land), unsafe=True)
    error = await refusal(confined, "convert", top, parameters=RAW | CHAIN)
    assert error.error_code is ErrorCode.IMAGE_UNSAFE
    assert tools_that_ran(confined.out) == []


async def test_chain_may_go_anywhere_below_the_root(confined: Bench, land: Land, base: Path) -> None:
    (land.root / "bases").mkdir()
    base.rename(land.root / "bases" / "base.img")
    top = layer(land.root / "images" / "top.qcow2", "../bases/base.img")
    await confined.run("convert", top, parameters=RAW | CHAIN)
    assert (confined.out / "top.raw").read_bytes() == (land.root / "bases" / "base.img").read_bytes()


async def test_chain_stays_in_its_directory_where_there_are_no_roots(bench: Bench, base: Path) -> None:
    (base.parent / "sub").mkdir()
    top = layer(base.parent / "sub" / "top.qcow2", "../base.img")
    assert (await refusal(bench, "convert", top, parameters=CHAIN)).error_code is ErrorCode.IMAGE_UNSAFE


async def test_layer_over_the_longest_chain_is_read_to_its_base(base: Path, tmp_path: Path) -> None:
    """As a repair makes one: it has to name every file of the chain."""
    top = chain_of(base, MAX_LAYERS)
    destination = Destination(tmp_path / "out")
    async with open_workplace(destination, "job", Lease(worker_id="w", token=1), lambda: False) as place:
        gate = Gate(scratch=place.scratch, allowed=frozenset({"allow_backing_chain"}))
        async with (
            open_image(ImageSpec(path=str(top)), lambda *_: None, gate) as image,
            overlay(place, image.disk) as made,
        ):
            assert len(image.chain) == MAX_LAYERS
            assert await QemuImg(place.tools).read(made, 0, 512) == base.read_bytes()[:512]


def chain_of(base: Path, length: int) -> Path:
    """A qcow2 that builds on so many other files."""
    below: tuple[Path, str] = (base, "raw")
    for number in range(length):
        below = (layer(base.with_name(f"{number}.qcow2"), *below), "qcow2")
    return below[0]


def itself(base: Path) -> Path:
    return layer(base.with_name("top.qcow2"), "top.qcow2", "qcow2", unsafe=True)


def endless(base: Path) -> Path:
    return chain_of(base, MAX_LAYERS + 1)


def without_a_format(base: Path) -> Path:
    return layer(base.with_name("top.qcow2"), "base.img", None)


def over_a_hostile_base(base: Path) -> Path:
    qemu_img(
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        f"data_file={base.with_name('data')}",
        base.with_name("b.qcow2"),
        "1M",
    )
    return layer(base.with_name("top.qcow2"), "b.qcow2", "qcow2")


def over_a_pipe(base: Path) -> Path:
    os.mkfifo(base.with_name("pipe"))
    return layer(base.with_name("top.qcow2"), "pipe", unsafe=True)


@pytest.mark.parametrize("make", [itself, endless, without_a_format, over_a_hostile_base, over_a_pipe])
async def test_allowed_chain_that_is_no_honest_one_is_refused(
    bench: Bench, base: Path, make: Callable[[Path], Path]
) -> None:
    error = await refusal(bench, "convert", make(base), parameters=CHAIN)
    assert error.error_code is ErrorCode.IMAGE_UNSAFE
    assert tools_that_ran(bench.out) == []


async def test_member_of_another_format_than_the_one_above_says_is_refused(bench: Bench, base: Path) -> None:
    """A guest that writes a header into its raw disk must not make it another image."""
    convert_to(base, base.with_name("other.img"), "qcow2")
    top = layer(base.with_name("top.qcow2"), "other.img", "raw", unsafe=True)
    assert (await refusal(bench, "convert", top, parameters=CHAIN)).error_code is ErrorCode.FORMAT_MISMATCH


async def test_missing_member_is_named(bench: Bench, base: Path) -> None:
    top = layer(base.with_name("top.qcow2"), "base.img")
    base.unlink()
    error = await refusal(bench, "convert", top, parameters=CHAIN)
    assert (error.error_code, str(base) in str(error)) == (ErrorCode.IMAGE_NOT_FOUND, True)


async def test_base_that_changes_while_it_is_read_is_not_published(bench: Bench, base: Path) -> None:
    bench.report.on_advance = lambda phase, _: os.utime(base) if phase in {"convert", "compare"} else None
    top = layer(base.with_name("top.qcow2"), "base.img")
    assert (await refusal(bench, "convert", top, parameters=CHAIN)).error_code is ErrorCode.IMAGE_UNSAFE


async def test_header_rewritten_after_the_check_opens_no_other_file(
    confined: Bench, land: Land, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file, with a backing file put into its header in place: the descriptor cannot tell."""
    image = convert_to(base, land.root / "images" / "disk.qcow2", "qcow2")
    evil = layer(land.root / "evil.qcow2", land.canary)
    seen: list[bytes] = []

    enter, place = confined.report.enter, confined.out

    def rewrite(phase: str, message: str = "") -> None:
        enter(phase, message)
        if phase == "convert":
            image.write_bytes(evil.read_bytes())

    monkeypatch.setattr(confined.report, "enter", rewrite)
    confined.report.on_advance = lambda *_: seen.extend(
        each.read_bytes() for each in place.glob(".h2kbus-*/output")
    )
    error = await refusal(confined, "convert", image, parameters=RAW)
    assert error.error_code in {ErrorCode.IMAGE_UNSAFE, ErrorCode.IMAGE_CORRUPT}
    assert seen
    assert not any(b"what is outside" in each for each in seen)


async def test_snapshots_are_refused_unless_the_job_allows_them(bench: Bench, base: Path) -> None:
    image = convert_to(base, base.with_name("snap.qcow2"), "qcow2")
    qemu_img("snapshot", "-c", "before", image)
    error = await refusal(bench, "convert", image, parameters=RAW)
    assert (error.error_code, "parameters.allow_snapshots" in str(error)) == (ErrorCode.IMAGE_UNSAFE, True)
    await bench.run("convert", image, parameters=RAW | {"allow_snapshots": True})
    assert (bench.out / "snap.raw").read_bytes() == base.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("operation", READERS)
async def test_endless_output_of_an_allowed_image_is_bounded(
    bench: Bench, raw_disk: Path, tmp_path: Path, operation: str
) -> None:
    image = talkative(tmp_path, raw_disk)
    error = await refusal(bench, operation, image, parameters={"allow_snapshots": True})
    assert (error.error_code, "allow_snapshots" in str(error)) == (ErrorCode.IMAGE_UNSAFE, False)


@pytest.mark.parametrize("operation", READERS)
async def test_disk_larger_than_the_worker_takes_is_refused(
    bench: Bench, tmp_path: Path, operation: str
) -> None:
    """By its virtual size: the file itself is small."""
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "large.qcow2", "3T")
    bench.site = Site.of([], [], 2.0)
    error = await refusal(bench, operation, tmp_path / "large.qcow2")
    assert (error.error_code, "the limit is 2000000000000" in str(error)) == (ErrorCode.IMAGE_UNSAFE, True)


@pytest.mark.parametrize("operation", READERS)
async def test_second_opinion_on_the_format_has_to_agree(
    bench: Bench, tmp_path: Path, operation: str
) -> None:
    """A script that qemu takes for an image of a format that we do not even read."""
    image = written("disk.img", _CLOOP.ljust(4096, b"\0"))
    error = await refusal(bench, operation, image(tmp_path, tmp_path), format="raw")
    assert error.error_code is ErrorCode.FORMAT_MISMATCH


@pytest.mark.parametrize("driver", ["qcow2", "vmdk", "vdi", "vpc", "vhdx"])
async def test_second_opinion_agrees_on_honest_images(bench: Bench, base: Path, driver: str) -> None:
    image = convert_to(base, base.with_name(f"disk.{'vhd' if driver == 'vpc' else driver}"), driver)
    await bench.run("convert", image, parameters=RAW)
    assert (bench.out / "disk.raw").exists()


@pytest.mark.slow
async def test_worker_holds_all_files_of_its_largest_images() -> None:
    """Started with the usual limit of 1024 files, a worker may hold ten images of 512 extents each."""
    program = """
import resource
from workers.regular import allow_many_files
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
allow_many_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    done = await anyio.run_process([sys.executable, "-c", program], env=environment())
    assert int(done.stdout) > 10 * 512
