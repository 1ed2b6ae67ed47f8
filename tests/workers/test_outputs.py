import contextlib
import errno
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.workers.conftest import Hanging, SlowOpening
from workers import outputs
from workers.outputs import open_output, require_free, scratch_directory, sync_file
from workers.site import Destination, OpenDirectory

pytestmark = pytest.mark.anyio


def never() -> bool:
    return False


@contextlib.asynccontextmanager
async def scratch_in(out: Path) -> AsyncIterator[OpenDirectory]:
    with open_output(Destination(out), make=True) as output:
        async with scratch_directory(output, "job", 1, never) as scratch:
            yield scratch


async def test_output_path_is_made_and_scratch_goes_away(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    async with scratch_in(out) as scratch:
        (scratch.inside / "half").write_text("written")
        assert scratch.inside.stat().st_mode & 0o777 == 0o700
    assert list(out.iterdir()) == []


async def test_dangling_link_counts_as_a_taken_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with Destination(tmp_path).opened() as output, pytest.raises(OperationFailed) as caught:
        require_free(output, tmp_path / "link")
    assert caught.value.error_code is ErrorCode.OUTPUT_EXISTS


async def test_file_in_the_place_of_the_directory_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperationFailed) as caught:
        async with scratch_in(tmp_path / "file" / "out"):
            pass
    assert caught.value.error_code is ErrorCode.OUTPUT_UNWRITABLE


async def test_directory_that_refuses_us_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(OperationFailed) as caught:
            async with scratch_in(tmp_path / "out"):
                pass
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert caught.value.error_code is ErrorCode.OUTPUT_UNWRITABLE


async def test_scratch_directory_that_cannot_be_removed_is_named_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr(outputs, "remove_tree", busy)
    async with scratch_in(tmp_path / "out"):
        pass
    assert f"{tmp_path / 'out' / '.h2kbus-job-1'} stays" in caplog.text


async def test_cancelled_sync_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    (tmp_path / "output").touch()
    monkeypatch.setattr(os, "fsync", hanging)
    await hanging.reached_by_cancelled(partial(sync_file, tmp_path / "output"))
    assert hanging.hangs


async def test_sync_that_was_cancelled_while_it_opened_the_file_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    (tmp_path / "output").touch()
    opening = SlowOpening(hanging)
    monkeypatch.setattr(outputs, "made", opening)
    await hanging.reached_by_cancelled(partial(sync_file, tmp_path / "output"))
    await opening.closed_afterwards()


async def test_removal_does_not_wait_for_a_disk_that_hangs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outputs, "_REMOVAL_SECONDS", 0.1)
    monkeypatch.setattr(outputs, "remove_scratch", hanging)
    with anyio.fail_after(10):
        async with scratch_in(tmp_path / "out"):
            pass
    assert hanging.hangs
    assert ".h2kbus-job-1 is not removed yet" in caplog.text
