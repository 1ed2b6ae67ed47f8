import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.spec import ImageSpec
from tests.workers.conftest import convert_to, qemu_img
from tests.workers.packages import appliance, descriptor, ignore, lay_out, opened, pack
from workers.image import Gate, open_image

pytestmark = pytest.mark.anyio

BLANK = bytes(65536)


@pytest.fixture(params=["ova", "ovf"])
def container(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def package(place: Path, container: str, files: Mapping[str, bytes]) -> Path:
    """The same package in either form."""
    if container == "ova":
        return pack(place / "vm.ova", files)
    lay_out(place / "vm", files)
    return place / "vm" / "vm.ovf"


async def refusal(path: Path, member: str | None = None, **more: Any) -> OperationFailed:
    with pytest.raises(OperationFailed) as caught:
        await opened(path, member, **more)
    assert "\n" not in str(caught.value)
    return caught.value


async def test_the_only_disk_need_not_be_named(tmp_path: Path, container: str, stream_vmdk: Path) -> None:
    path = package(tmp_path, container, appliance({"disk 1.vmdk": stream_vmdk.read_bytes()}))
    image = await opened(path)
    assert (image.format, image.size, list(image.findings)) == ("vmdk", stream_vmdk.stat().st_size, [])
    assert image.container["member"] == "disk 1.vmdk"


async def test_one_of_several_disks_is_chosen_by_its_name(tmp_path: Path, container: str) -> None:
    path = package(tmp_path, container, appliance({"a.img": BLANK, "b.img": BLANK * 2}))
    image = await opened(path, "b.img")
    assert image.size == 2 * len(BLANK)
    assert image.container["other_disks"] == ["a.img"]


@pytest.mark.parametrize("member", [None, "c.img", "vm.ovf"])
async def test_choice_that_is_none_lists_the_disks(
    tmp_path: Path, container: str, member: str | None
) -> None:
    path = package(tmp_path, container, appliance({"a.img": BLANK, "b.img": BLANK}))
    error = await refusal(path, member)
    assert error.error_code is ErrorCode.INVALID_SPEC
    assert "'a.img', 'b.img'" in str(error)


async def test_disk_of_an_image_that_is_no_container(raw_disk: Path) -> None:
    assert (await refusal(raw_disk, "disk")).error_code is ErrorCode.INVALID_SPEC


async def test_name_that_the_descriptor_writes_as_a_uri(tmp_path: Path, container: str) -> None:
    files = {"vm.ovf": descriptor("disk%201.img"), "disk 1.img": BLANK}
    image = await opened(package(tmp_path, container, files), "disk 1.img")
    assert image.size == len(BLANK)


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_archives_of_other_layouts(tmp_path: Path, layout: int) -> None:
    name = "d" * 150 + ".img"
    image = await opened(pack(tmp_path / "vm.ova", appliance({name: BLANK}), layout))
    assert image.container["member"] == name


async def test_format_is_that_of_the_disk_inside(tmp_path: Path, container: str, stream_vmdk: Path) -> None:
    path = package(tmp_path, container, appliance({"a.vmdk": stream_vmdk.read_bytes()}))
    assert (await opened(path, format="vmdk")).format == "vmdk"
    assert (await refusal(path, format="qcow2")).error_code is ErrorCode.FORMAT_MISMATCH


async def test_size_and_checksum_are_those_of_the_file_that_the_job_names(
    tmp_path: Path, container: str
) -> None:
    path = package(tmp_path, container, appliance({"a.img": BLANK}))
    assert (await refusal(path, size_bytes=len(BLANK))).error_code is ErrorCode.SIZE_MISMATCH
    assert (await refusal(path, checksum="0" * 64)).error_code is ErrorCode.CHECKSUM_MISMATCH
    await opened(path, size_bytes=path.stat().st_size)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
async def test_manifest_is_held_against_the_disk(tmp_path: Path, container: str, algorithm: str) -> None:
    files = appliance({"a.img": BLANK[:-100]}, algorithm=algorithm)
    assert (await opened(package(tmp_path, container, files))).warnings == []
    files["a.img"] = b"\1" + files["a.img"][1:]
    error = await refusal(package(tmp_path, container, files))
    assert error.error_code is ErrorCode.CHECKSUM_MISMATCH


async def test_manifest_is_held_against_the_descriptor(tmp_path: Path, container: str) -> None:
    files = appliance({"a.img": BLANK}, algorithm="sha256")
    files["vm.ovf"] = files["vm.ovf"].replace(b"Disks", b"disks")
    error = await refusal(package(tmp_path, container, files))
    assert error.error_code is ErrorCode.CHECKSUM_MISMATCH


async def test_verifying_the_manifest_tells_how_far_it_is(tmp_path: Path, container: str) -> None:
    path = package(tmp_path, container, appliance({"a.img": BLANK}, algorithm="sha1"))
    told: list[tuple[int, int]] = []
    async with open_image(
        ImageSpec(path=str(path)), lambda *each: told.append(each), Gate(scratch=path.parent)
    ):
        assert told[-1] == (len(BLANK), len(BLANK))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"vm.cert": b"signed"}, "was not checked"),
        ({"vm.mf": b"SHA256(other)= 00\n"}, "does not vouch"),
        ({"vm.mf": b"MD5(a.img)= 00\n"}, "vouches for nothing"),
        ({"vm.ovf": descriptor("a.img", file='ovf:size="5"')}, "5 bytes"),
    ],
)
async def test_what_was_not_vouched_for_is_warned_about(
    tmp_path: Path, container: str, more: dict[str, bytes], words: str
) -> None:
    image = await opened(package(tmp_path, container, {**appliance({"a.img": BLANK}), **more}))
    assert any(words in each for each in image.warnings)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"file": 'ovf:compression="gzip"'}, ErrorCode.FORMAT_MISMATCH),
        ({"file": 'ovf:chunkSize="1000"'}, ErrorCode.FORMAT_MISMATCH),
        ({"disk": 'ovf:parentRef="d0"'}, ErrorCode.IMAGE_UNSAFE),
    ],
)
async def test_disk_that_is_no_image_as_it_stands(
    tmp_path: Path, container: str, more: dict[str, str], code: ErrorCode
) -> None:
    path = package(tmp_path, container, appliance({"a.img": BLANK}, **more))
    assert (await refusal(path)).error_code is code


async def test_package_without_a_disk_is_corrupt(tmp_path: Path, container: str) -> None:
    path = package(tmp_path, container, {"vm.ovf": descriptor()})
    assert (await refusal(path)).error_code is ErrorCode.IMAGE_CORRUPT


@pytest.mark.parametrize("files", [{"a.img": BLANK}, {"a.ovf": descriptor("d"), "b.ovf": descriptor("d")}])
async def test_archive_without_one_descriptor_is_corrupt(tmp_path: Path, files: dict[str, bytes]) -> None:
    assert (await refusal(pack(tmp_path / "a.ova", files))).error_code is ErrorCode.IMAGE_CORRUPT


async def test_disk_that_the_package_lacks(tmp_path: Path) -> None:
    files = {"vm.ovf": descriptor("a.img")}
    assert (await refusal(package(tmp_path, "ova", files))).error_code is ErrorCode.IMAGE_CORRUPT
    assert (await refusal(package(tmp_path, "ovf", files))).error_code is ErrorCode.IMAGE_NOT_FOUND


@pytest.mark.parametrize("name", ["a.img", "vm.mf"])
async def test_link_beside_a_descriptor_is_not_followed(tmp_path: Path, name: str) -> None:
    path = package(tmp_path, "ovf", appliance({"a.img": BLANK}, algorithm="sha256"))
    path.with_name(name).rename(tmp_path / "elsewhere")
    path.with_name(name).symlink_to(tmp_path / "elsewhere")
    assert (await refusal(path)).error_code is ErrorCode.IMAGE_UNSAFE


@pytest.mark.parametrize("name", ["vm.ovf", "vm.mf", "a.img"])
async def test_change_of_any_file_of_a_package_is_noticed(tmp_path: Path, name: str) -> None:
    path = package(tmp_path, "ovf", appliance({"a.img": BLANK}, algorithm="sha256"))
    async with open_image(ImageSpec(path=str(path)), ignore, Gate(scratch=path.parent)) as image:
        image.require_unchanged()
        os.utime(path.with_name(name))
        with pytest.raises(OperationFailed, match="changed"):
            image.require_unchanged()


async def test_descriptor_inside_an_archive_may_not_name_further_files(tmp_path: Path) -> None:
    text = b'# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\nRW 1 FLAT "b.img" 0\n'
    path = pack(tmp_path / "vm.ova", appliance({"a.vmdk": text, "b.img": BLANK}))
    async with open_image(
        ImageSpec(path=str(path)), ignore, Gate(scratch=path.parent, member="a.vmdk")
    ) as image:
        with pytest.raises(OperationFailed, match="further files") as caught:
            image.require_sound()
    assert caught.value.error_code is ErrorCode.IMAGE_UNSAFE


async def test_backing_file_of_a_disk_inside_is_refused(
    tmp_path: Path, container: str, raw_disk: Path
) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-b", raw_disk, "-F", "raw", tmp_path / "a.qcow2")
    path = package(tmp_path, container, appliance({"a.qcow2": (tmp_path / "a.qcow2").read_bytes()}))
    image = await opened(path)
    assert [each.code for each in image.findings] == [ErrorCode.IMAGE_UNSAFE]


@pytest.mark.parametrize("driver", ["vmdk", "qcow2", "vdi", "vpc", "vhdx"])
async def test_missing_end_of_a_disk_inside_is_found(
    tmp_path: Path, container: str, raw_disk: Path, driver: str
) -> None:
    data = convert_to(raw_disk, tmp_path / "image", driver).read_bytes()
    disks = {"a": data[: len(data) // 1024 * 512], "zz": data}
    image = await opened(package(tmp_path, container, appliance(disks)), "a")
    if driver != "qcow2":
        assert [each.code for each in image.findings] == [ErrorCode.IMAGE_CORRUPT]
    assert list((await opened(package(tmp_path, container, appliance(disks)), "zz")).findings) == []


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.vmdk", BLANK, ErrorCode.IMAGE_CORRUPT),
        ("a.img", b"", ErrorCode.IMAGE_CORRUPT),
        ("a.img", b"\x1f\x8b\x08" + BLANK, ErrorCode.FORMAT_MISMATCH),
    ],
)
async def test_what_is_no_image_is_none_inside_a_container(
    tmp_path: Path, container: str, name: str, data: bytes, code: ErrorCode
) -> None:
    assert (await refusal(package(tmp_path, container, appliance({name: data})))).error_code is code
