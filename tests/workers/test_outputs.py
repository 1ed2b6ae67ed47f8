import os
from pathlib import Path

import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.workers.conftest import lease_is_held
from workers.outputs import StagedFile, publish, require_free, scratch_directory, sweep_scratch

pytestmark = pytest.mark.anyio


def staged(scratch: Path, target: Path) -> StagedFile:
    source = scratch / f"staged-{target.name}"
    source.write_text(target.name)
    return StagedFile(source, target)


async def test_output_path_is_made_and_scratch_goes_away(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    async with scratch_directory(out, "job", 1) as scratch:
        (scratch / "half").write_text("written")
        assert scratch.stat().st_mode & 0o777 == 0o700
    assert list(out.iterdir()) == []


async def test_leftovers_of_earlier_attempts_go_and_others_stay(tmp_path: Path) -> None:
    for name in (".h2kbus-job-1", ".h2kbus-job-9", ".h2kbus-job-a-1", ".h2kbus-other-1"):
        (tmp_path / name).mkdir()
    await sweep_scratch(tmp_path, "job", before=2)
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == [".h2kbus-job-9", ".h2kbus-job-a-1", ".h2kbus-other-1"]


async def test_published_files_are_whole_and_private(tmp_path: Path) -> None:
    async with scratch_directory(tmp_path, "job", 1) as scratch:
        await publish([staged(scratch, tmp_path / "a")], lease_is_held)
    assert (tmp_path / "a").read_text() == "a"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a").stat().st_nlink == 1


async def test_one_taken_name_publishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    async with scratch_directory(tmp_path, "job", 1) as scratch:
        files = [staged(scratch, tmp_path / "a"), staged(scratch, tmp_path / "b")]
        with pytest.raises(OperationFailed) as caught:
            await publish(files, lease_is_held)
    assert caught.value.error_code is ErrorCode.OUTPUT_EXISTS
    assert [each.name for each in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_text() == "mine"


async def test_filesystem_without_hard_links_does_not_overwrite_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "taken").write_text("mine")
    async with scratch_directory(tmp_path, "job", 1) as scratch:
        await publish([staged(scratch, tmp_path / "free")], lease_is_held)
        with pytest.raises(OperationFailed):
            await publish([staged(scratch, tmp_path / "taken")], lease_is_held)
    assert (tmp_path / "free").read_text() == "free"
    assert (tmp_path / "taken").read_text() == "mine"


async def test_dangling_link_counts_as_a_taken_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OperationFailed) as caught:
        require_free(tmp_path / "link")
    assert caught.value.error_code is ErrorCode.OUTPUT_EXISTS


async def test_file_in_the_place_of_the_directory_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperationFailed) as caught:
        async with scratch_directory(tmp_path / "file" / "out", "job", 1):
            pass
    assert caught.value.error_code is ErrorCode.OUTPUT_UNWRITABLE


async def test_directory_that_refuses_us_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(OperationFailed) as caught:
            async with scratch_directory(tmp_path / "out", "job", 1):
                pass
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert caught.value.error_code is ErrorCode.OUTPUT_UNWRITABLE
