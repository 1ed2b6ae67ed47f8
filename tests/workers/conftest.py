"""Real disks, and the caller's side of an operation: a job's context with a report that remembers."""

import binascii
import contextlib
import os
import struct
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import anyio
import msgspec
import pytest

from subjects.builtin import BUILT_IN
from subjects.fleet import CONFINED
from subjects.lease import Lease
from subjects.operations import OperationDeclaration, parameters_of, selected_actions
from subjects.spec import ArtifactPolicy, Audit, ImageSpec, JobSpec
from workers.context import JobContext, OperationResult
from workers.operations import load_runner
from workers.outputs import StagedFile
from workers.publication import Publication, publish
from workers.scratch import made
from workers.site import ANYWHERE
from workers.workplace import Workplace, open_workplace

MIB = 1 << 20
DISK_BYTES = 48 * MIB
PARTITION_AT = 1 * MIB
PARTITION_BYTES = 40 * MIB
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
DECLARATIONS: dict[str, OperationDeclaration] = {each.name: each for each in BUILT_IN}


def qemu_img(*argv: object) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, stdout=subprocess.DEVNULL, timeout=60)


def convert_to(source: Path, target: Path, driver: str, *options: str) -> Path:
    qemu_img("convert", "-f", "raw", "-O", driver, *options, source, target)
    return target


def same_content(one: Path, one_driver: str, other: Path, other_driver: str) -> bool:
    argv = ["qemu-img", "compare", "-q", "-f", one_driver, "-F", other_driver, str(one), str(other)]
    return subprocess.run(argv, check=False, timeout=60).returncode == 0


def protective_mbr(disk_bytes: int) -> bytes:
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, disk_bytes // 512 - 1)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def gpt(disk_bytes: int) -> tuple[bytes, bytes]:
    """A GPT with one Linux partition: the header with its table, and the backup."""
    last = disk_bytes // 512 - 1
    first = PARTITION_AT // 512
    name = "root".encode("utf-16-le").ljust(72, b"\0")
    entry = struct.pack("<16s16sQQQ", LINUX, b"\1" * 16, first, first + PARTITION_BYTES // 512 - 1, 4) + name
    table = entry.ljust(128 * 128, b"\0")

    def header(own: int, other: int, table_at: int) -> bytes:
        fields = (own, other, 34, last - 33, b"\2" * 16, table_at, 128, 128, binascii.crc32(table))
        blank = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
        return (blank[:16] + struct.pack("<I", binascii.crc32(blank)) + blank[20:]).ljust(512, b"\0")

    return header(1, last, 2) + table, table + header(last, 1, last - 32)


@pytest.fixture(scope="session")
def raw_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A partitioned disk: GPT, one ext4 filesystem with files in it."""
    place = tmp_path_factory.mktemp("disk")
    tree = place / "tree"
    tree.mkdir()
    (tree / "hello.txt").write_text("hello\n")
    (tree / "noise.bin").write_bytes(os.urandom(6 * MIB))
    filesystem, disk = place / "root.ext4", place / "disk.img"
    filesystem.touch()
    os.truncate(filesystem, PARTITION_BYTES)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-d", tree, filesystem], check=True, timeout=60)
    primary, backup = gpt(DISK_BYTES)
    with disk.open("wb") as file:
        file.write(protective_mbr(DISK_BYTES) + primary)
        file.seek(PARTITION_AT)
        file.write(filesystem.read_bytes())
        file.seek(DISK_BYTES - len(backup))
        file.write(backup)
    return disk


@pytest.fixture(scope="session")
def vmdk(raw_disk: Path) -> Path:
    return convert_to(raw_disk, raw_disk.with_name("disk.vmdk"), "vmdk")


@pytest.fixture(scope="session")
def stream_vmdk(raw_disk: Path) -> Path:
    return convert_to(raw_disk, raw_disk.with_name("s.vmdk"), "vmdk", "-o", "subformat=streamOptimized")


def processes_below(directory: Path) -> list[str]:
    """Processes that work below a directory."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found.append(str(each.readlink()))
        except OSError:
            continue
    return [each for each in found if each.startswith(str(directory))]


class RecordingReport:
    """The caller's side of progress: it remembers what it was told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.fractions: list[tuple[str, float]] = []
        self.on_advance: Callable[[str, float], None] = lambda phase, fraction: None

    def enter(self, phase: str, message: str = "") -> None:
        self.phases.append(phase)

    def advance(
        self,
        fraction: float,
        message: str = "",
        *,
        bytes_done: int | None = None,
        bytes_total: int | None = None,
    ) -> None:
        self.fractions.append((self.phases[-1], fraction))
        self.on_advance(self.phases[-1], fraction)


async def lease_is_held() -> None:
    """The guard of an attempt whose lease is fine."""


class Hanging:
    """A disk that does not answer until it is let go."""

    def __init__(self) -> None:
        self._reached, self._over, self._waited_for = (threading.Event() for _ in range(3))

    async def is_reached(self) -> None:
        """Wait until somebody waits for it."""
        assert await anyio.to_thread.run_sync(self._reached.wait, 10)

    async def reached_by_cancelled(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel a call that waits for it. Its end must not have to wait too."""
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await self.is_reached()
                group.cancel_scope.cancel()

    def __call__(self, *_: object) -> bool:
        self._reached.set()
        over = self._over.wait(30)
        self._waited_for.set()
        return over

    @property
    def hangs(self) -> bool:
        """Whether it was asked and has not answered: who goes on meanwhile has not waited for it."""
        return self._reached.is_set() and not self._waited_for.is_set()

    def let_go(self) -> None:
        self._over.set()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    disk = Hanging()
    yield disk
    disk.let_go()


class SlowOpening:
    """Opens files when the disk is let go, for somebody who may be gone by then."""

    def __init__(self, disk: Hanging) -> None:
        self._disk, self._opened = disk, list[IO[bytes]]()

    def __call__(self, path: Path) -> IO[bytes]:
        self._disk()
        self._opened.append(made(path))
        return self._opened[-1]

    async def closed_afterwards(self) -> None:
        """Let it open what it was asked for, and wait until that is closed."""
        self._disk.let_go()
        with anyio.fail_after(10):
            while not self._opened or not all(file.closed for file in self._opened):
                await anyio.sleep(0.01)


class Bench:
    """Runs operations the way a worker does, into one output directory.

    Tools are confined, as on every host that can do it; `confined` is for what has to look into them.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.report = RecordingReport()
        self.capabilities: frozenset[str] = frozenset()
        self.confined = True
        self.site = ANYWHERE
        self.guard: Callable[[], Awaitable[None]] = lease_is_held
        self.publication: Publication | None = None

    def names(self) -> list[str]:
        """What is visible or hidden in the output directory, without the log."""
        return sorted(each.name for each in self.out.iterdir() if each.name != "job-1.log")

    async def run(
        self, operation: str, image: Path, *, actions: tuple[str, ...] = (), **more: Any
    ) -> OperationResult:
        artifacts = more.pop("artifacts", {})
        parameters = more.pop("parameters", {})
        spec = JobSpec(
            operation=operation,
            image=ImageSpec(path=str(image), **more),
            artifacts=ArtifactPolicy(output_path=str(self.out), **artifacts),
            audit=Audit(requested_by="tester"),
            requested_actions=actions,
            parameters=parameters,
        )
        return await self._attempt(spec, DECLARATIONS[operation])

    async def _attempt(self, spec: JobSpec, declaration: OperationDeclaration) -> OperationResult:
        places: list[Workplace] = []
        destination = self.site.destination(str(self.out))
        capabilities = self.capabilities | ({CONFINED} if self.confined else set())

        @contextlib.asynccontextmanager
        async def workplace() -> AsyncIterator[Workplace]:
            lease = Lease(worker_id="worker-1", token=7)
            async with open_workplace(
                destination,
                "job-1",
                lease,
                lambda: self.publication is not None,
                confined=CONFINED in capabilities,
            ) as place:
                places.append(place)
                yield place

        async def publish_all(files: Sequence[StagedFile], result: OperationResult) -> OperationResult:
            place = places[-1]
            self.publication = await publish(
                destination, place.output, place.private, files, result, self.guard
            )
            return result

        job = JobContext(
            job_id="job-1",
            attempt=1,
            token=7,
            spec=spec,
            parameters=parameters_of(declaration, spec.parameters),
            actions=selected_actions(declaration, spec.requested_actions),
            capabilities=capabilities,
            site=self.site,
            report=self.report,
            workplace=workplace,
            publish=publish_all,
        )
        result = await load_runner(declaration)().run(job)
        if self.publication is not None:
            await self.publication.keep()
        return result

    def read_report(self) -> dict[str, Any]:
        return msgspec.json.decode((self.out / "job-1.report.json").read_bytes(), type=dict[str, Any])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "out")
