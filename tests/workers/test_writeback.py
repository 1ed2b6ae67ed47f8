"""A tool's file is on its way to the disk while the tool still writes it."""

import ctypes
import errno
import os
from functools import partial
from pathlib import Path
from typing import IO, Final

import anyio
import anyio.from_thread
import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.workers.conftest import Hanging, SlowOpening
from workers import writeback
from workers.writeback import begin_writeback, with_writeback

pytestmark = pytest.mark.anyio

MIB: Final = 1 << 20
_CACHESTAT: Final = 451


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "writing", "gone", "lately"))


def dirty_pages(path: Path) -> int:
    """Pages of the file that nobody has begun to write out, as the kernel counts them (cachestat, 6.5)."""
    counts, everything = _Counts(), _Range(0, 0)
    with path.open("rb") as file:
        call = ctypes.CDLL(None, use_errno=True).syscall
        failed = call(_CACHESTAT, file.fileno(), ctypes.byref(everything), ctypes.byref(counts), 0)
    if failed and ctypes.get_errno() == errno.ENOSYS:
        pytest.skip("only a kernel from 6.5 on counts a file's pages")
    assert not failed, os.strerror(ctypes.get_errno())
    return int(counts.dirty)


async def none_dirty(path: Path) -> None:
    with anyio.fail_after(10):
        while dirty_pages(path):
            await anyio.sleep(0.01)


async def test_what_was_written_goes_to_the_disk_before_the_tool_has_ended(tmp_path: Path) -> None:
    file = tmp_path / "output"

    async def tool() -> None:
        await anyio.sleep(0.05)
        for _ in range(2):
            with file.open("ab") as output:
                output.write(os.urandom(4 * MIB))
            await none_dirty(file)

    await with_writeback(file, tool)
    assert file.stat().st_size == 8 * MIB


async def test_tool_that_writes_nothing_is_waited_for(tmp_path: Path) -> None:
    done = []

    async def tool() -> None:
        await anyio.sleep(0.05)
        done.append(True)

    await with_writeback(tmp_path / "output", tool)
    assert done


async def test_failure_of_the_tool_is_the_failure(tmp_path: Path) -> None:
    async def tool() -> None:
        (tmp_path / "output").write_bytes(b"half")
        await anyio.sleep(0.05)
        raise OperationFailed(ErrorCode.NO_SPACE, "the disk is full")

    with pytest.raises(OperationFailed, match="the disk is full"):
        await with_writeback(tmp_path / "output", tool)


async def test_cancelling_ends_both(tmp_path: Path) -> None:
    (tmp_path / "output").write_bytes(b"some")
    with anyio.move_on_after(0.1) as scope:
        await with_writeback(tmp_path / "output", anyio.sleep_forever)
    assert scope.cancelled_caught


async def test_disk_that_hangs_does_not_keep_an_attempt_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    (tmp_path / "output").write_bytes(b"some")
    monkeypatch.setattr(writeback, "begin_writeback", hanging)
    await hanging.reached_by_cancelled(partial(with_writeback, tmp_path / "output", anyio.sleep_forever))
    assert hanging.hangs


async def test_tool_that_has_ended_is_not_held_up_by_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    (tmp_path / "output").write_bytes(b"some")
    monkeypatch.setattr(writeback, "begin_writeback", hanging)
    with anyio.fail_after(10):
        await with_writeback(tmp_path / "output", hanging.is_reached)
    assert hanging.hangs


async def test_tool_that_ends_while_its_file_is_opened_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: Hanging
) -> None:
    (tmp_path / "output").write_bytes(b"some")
    opening = SlowOpening(hanging)
    monkeypatch.setattr(writeback, "made", opening)
    with anyio.fail_after(10):
        await with_writeback(tmp_path / "output", hanging.is_reached)
    await opening.closed_afterwards()


async def test_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"secret")
    (tmp_path / "output").symlink_to("victim")
    with anyio.fail_after(10), pytest.raises(OperationFailed, match="not what belongs there"):
        await with_writeback(tmp_path / "output", anyio.sleep_forever)


async def test_where_it_is_not_possible_it_is_left_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "output").write_bytes(b"some")
    asked, was_asked = [], anyio.Event()

    def impossible(file: IO[bytes]) -> bool:
        asked.append(file)
        anyio.from_thread.run_sync(was_asked.set)
        return False

    monkeypatch.setattr(writeback, "begin_writeback", impossible)

    async def tool() -> None:
        await was_asked.wait()
        await anyio.sleep(5 * writeback.INTERVAL_SECONDS)

    with anyio.fail_after(10):
        await with_writeback(tmp_path / "output", tool)
    assert len(asked) == 1


def test_what_has_no_pages_cannot_be_written_out() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        assert not begin_writeback(pipe)
