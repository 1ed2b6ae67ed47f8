"""A tool that was taken over writes to its scratch directory; what it lays there leads its worker nowhere."""

import contextlib
import itertools
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from h2kbus.errors import ErrorCode, OperationFailed
from tests.security.roots import exchanging
from tests.workers.conftest import lease_is_held
from workers import scratch as scratch_files
from workers.boot.firmware import Ovmf, prepare_ovmf
from workers.boot.tap import ConsoleTap
from workers.context import OperationResult
from workers.guest.initramfs import modules_in
from workers.joblog import JobLog
from workers.links import holding, link_files
from workers.outputs import StagedFile, keep_evidence, open_directory, scratch_directory, sync_file
from workers.process import ToolRunner
from workers.publication import clear_away, publish
from workers.qemu import Disk, QemuImg
from workers.site import Destination
from workers.writeback import with_writeback

pytestmark = pytest.mark.anyio

SECRET: Final = b"what the worker's user alone may read"
RESULT: Final = OperationResult(summary={})
JOB: Final = ".h2kbus-job-1"


class Place:
    """An output directory with an attempt's scratch directory, and files elsewhere that are none of its."""

    def __init__(self, root: Path) -> None:
        self.elsewhere, self.out = root / "elsewhere", root / "out"
        self.scratch = self.out / JOB
        for each in (self.elsewhere, self.scratch):
            each.mkdir(parents=True)
        self.victim = self.elsewhere / "worker.creds"
        self.victim.write_bytes(SECRET)
        self.victim.chmod(0o600)
        self.before = self.victim.stat()

    def require_untouched(self) -> None:
        now = self.victim.lstat()
        assert stat.S_ISREG(now.st_mode)
        assert self.victim.read_bytes() == SECRET
        assert (now.st_mode, now.st_mtime_ns) == (self.before.st_mode, self.before.st_mtime_ns)
        assert [each.name for each in self.elsewhere.iterdir()] == ["worker.creds"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def a_link(place: Place, name: str) -> None:
    (place.scratch / name).symlink_to(place.victim)


def a_pipe(place: Place, name: str) -> None:
    os.mkfifo(place.scratch / name)


async def publishing(place: Place, names: list[str]) -> None:
    destination = Destination(place.out)
    files = [StagedFile(place.scratch / each, place.out / f"job.{each}") for each in names]
    with destination.opened() as output:
        private = open_directory(output, JOB)
        try:
            await publish(destination, output, private, files, RESULT, lease_is_held)
        finally:
            os.close(private.descriptor)


async def publish_it(place: Place) -> None:
    await publishing(place, ["output"])


async def publish_beside(place: Place) -> None:
    await publishing(place, [])


async def keep_it(place: Place) -> None:
    with Destination(place.out).opened() as output:
        file = StagedFile(place.scratch / "output", place.out / "job.evidence")
        assert not await keep_evidence(output, [file])


async def sync_it(place: Place) -> None:
    await sync_file(place.scratch / "output")


async def write_it_out(place: Place) -> None:
    await with_writeback(place.scratch / "output", partial(anyio.sleep, 0.2))


async def read_a_range(place: Place) -> None:
    """With a qemu-img that has laid its trap instead of writing."""

    class Trap(ToolRunner):
        async def run(self, *_: Any, **__: Any) -> Any:
            return None

    with JobLog(Path(os.devnull)) as log:
        disk = Disk(path=place.victim, format="raw")
        assert await QemuImg(Trap(log, place.scratch)).read(disk, 0, 512) != SECRET


async def tap(place: Place) -> None:
    with ConsoleTap(place.scratch / "console.log") as opened:
        os.write(opened.writer, b"said")
        opened.read()


async def copy_variables(place: Place) -> None:
    source = place.scratch / "OVMF"
    source.write_bytes(b"variables")
    await prepare_ovmf(place.scratch, [Ovmf(source, source)])


async def unpack(place: Place) -> None:
    (place.scratch / "initramfs").write_bytes(b"\x1f\x8b never unpacks")
    with JobLog(Path(os.devnull)) as log:
        await modules_in(place.scratch / "initramfs", ToolRunner(log, place.scratch))


async def look_into(place: Place) -> None:
    with JobLog(Path(os.devnull)) as log:
        await modules_in(place.scratch / "initramfs", ToolRunner(log, place.scratch))


STEPS: Final[list[tuple[str, Callable[[Place], Awaitable[None]]]]] = [
    ("output", publish_it),
    ("publication.json", publish_beside),
    ("output", keep_it),
    ("output", sync_it),
    ("output", write_it_out),
    ("range.raw", read_a_range),
    ("console.log", tap),
    ("uefi-variables.fd", copy_variables),
    ("initramfs.packed", unpack),
    ("initramfs.inner", unpack),
    ("initramfs", look_into),
]


@pytest.mark.parametrize("lay", [a_link, a_pipe])
@pytest.mark.parametrize(("name", "step"), STEPS, ids=lambda each: getattr(each, "__name__", each))
async def test_worker_follows_nothing_and_waits_for_nobody(
    place: Place, name: str, step: Callable[[Place], Awaitable[None]], lay: Callable[[Place, str], None]
) -> None:
    lay(place, name)
    found = []
    try:
        await step(place)
    except OperationFailed as refused:
        found.append(refused.error_code)
    assert set(found) <= {ErrorCode.TOOL_FAILED}
    place.require_untouched()
    assert all(each.is_file() and not each.is_symlink() for each in place.out.iterdir() if each.name != JOB)


def test_links_to_open_files_are_made_in_the_scratch_directory_only(place: Place) -> None:
    (place.scratch / "source").symlink_to(place.elsewhere)
    with pytest.raises(OperationFailed, match="not what belongs there"):
        link_files(place.scratch, {place.victim.name: 0})
    place.require_untouched()


def test_links_that_a_tool_has_exchanged_end_nothing_and_are_not_followed(place: Place) -> None:
    link_files(place.scratch, {"disk": 7})
    (place.scratch / "source" / "file").write_text("no link")
    (place.scratch / "source" / "other").symlink_to(place.victim)
    with holding(place.scratch, "python3"):
        pass
    assert (place.scratch / "source" / "disk").readlink() == Path("/proc/self/fd/7")
    place.require_untouched()


async def test_scratch_directory_is_removed_however_deep_and_closed_it_is(place: Place) -> None:
    with Destination(place.out).opened() as output:
        async with scratch_directory(output, "deep", 1, lambda: False) as scratch:
            here = os.open(".", os.O_RDONLY)
            os.chdir(scratch.inside)
            for _ in range(1200):
                Path("a").mkdir()
                os.chdir("a")
            os.fchdir(here)
            os.close(here)
            (scratch.inside / "closed" / "in").mkdir(parents=True)
            (scratch.inside / "closed").chmod(0)
            (scratch.inside / "away").symlink_to(place.elsewhere)
    assert [each.name for each in place.out.iterdir()] == [JOB]
    place.require_untouched()


async def test_directory_that_somebody_keeps_filling_does_not_hold_its_worker_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, numbers = scratch_files.names_in, itertools.count()

    def after_more_was_made(directory: int) -> list[str]:
        os.close(os.open(f"more-{next(numbers)}", os.O_WRONLY | os.O_CREAT, dir_fd=directory))
        return listed(directory)

    monkeypatch.setattr(scratch_files, "names_in", after_more_was_made)
    monkeypatch.setattr(scratch_files, "REMOVAL_SECONDS", 0.1)
    with Destination(place.out).opened() as output, pytest.raises(OperationFailed, match=r"within 0\.1 s"):
        async with scratch_directory(output, "job", 1, lambda: True):
            pass
    place.require_untouched()


@pytest.mark.parametrize("confined", [True, False])
async def test_confined_tool_cannot_say_what_its_attempt_has_published(place: Place, confined: bool) -> None:
    """It knows the source, which a worker that believes it would take for an output, and take back."""
    source = place.out / "source.img"
    source.write_text("only read")
    status = source.stat()
    name = {"target": str(source), "inode": status.st_ino, "mtime_ns": status.st_mtime_ns}
    names = [name, {**name, "target": str(place.out / "missing")}]
    forged = {"scratch": ".h2kbus-job-2", "names": names, "result": {}}
    said = f"rm -f publication.json; echo '{json.dumps(forged)}' > publication.json"
    with Destination(place.out).opened() as output, JobLog(Path(os.devnull)) as log:
        async with scratch_directory(output, "job", 2, lambda: True) as scratch:
            tools = ToolRunner(log, scratch.inside, confined=confined)
            await tools.run(["sh", "-c", said], accept=(0, 1, 2))
        await clear_away(Destination(place.out), "job", keep_outputs=False)
    assert source.exists() is confined


@pytest.mark.slow
async def test_confined_tool_works_in_its_scratch_directory_or_nowhere(place: Place) -> None:
    """Somebody exchanges it for a link that leads away, while sandboxes are made in it.

    A sandbox that is made in the wrong place may leave the empty file that it mounts over, and no more.
    """
    other = place.out / "other"
    other.symlink_to("../elsewhere")
    with Destination(place.out).opened() as output, JobLog(Path(os.devnull)) as log:
        scratch = open_directory(output, JOB)
        tools = ToolRunner(log, scratch.inside, confined=True)
        with exchanging(place.scratch, other):
            for _ in range(60):
                with contextlib.suppress(OperationFailed):
                    await tools.run(["touch", "made"])
        os.close(scratch.descriptor)
    mounted_over = place.elsewhere / "publication.json"
    assert not mounted_over.exists() or not mounted_over.stat().st_size
    mounted_over.unlink(missing_ok=True)
    place.require_untouched()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory away")
async def test_nothing_is_left_in_a_directory_that_took_the_place_of_a_new_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, stranger = os.mkdir, 65534

    def exchanged(name: str, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        os.chown(name, stranger, stranger, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", exchanged)
    with Destination(place.out).opened() as output, pytest.raises(OperationFailed, match="exchanged"):
        async with scratch_directory(output, "job", 2, lambda: True):
            pass
    assert list((place.out / ".h2kbus-job-2").iterdir()) == []


_TAKE = """
import os, sys
os.chdir(sys.argv[1])
for number in range(10**9):
    try:
        if os.stat(".h2kbus-raced-1").st_uid != os.getuid():
            os.rename(".h2kbus-raced-1", f"taken-{number}")
            os.mkdir(".h2kbus-raced-1")
    except OSError:
        pass
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has somebody else make a directory")
async def test_scratch_directory_is_never_somebody_elses(place: Place) -> None:
    """Who may write to the output directory takes each new one away, and makes another one."""
    for each in (place.out, *place.out.parents[:4]):
        each.chmod(0o777)
    away = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    until = anyio.current_time() + 2
    process = subprocess.Popen([*away, "/usr/bin/python3", "-c", _TAKE, str(place.out)])
    try:
        with Destination(place.out).opened() as output:
            while anyio.current_time() < until:
                with contextlib.suppress(OperationFailed):
                    async with scratch_directory(output, "raced", 1, lambda: True) as scratch:
                        assert os.fstat(scratch.descriptor).st_uid == os.geteuid()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(place.out)
