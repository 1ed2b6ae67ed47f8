"""One mutant through one operation, as a worker runs it, and what is held against it."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import psutil

from h2kbus.errors import ErrorCode, InvalidMessage, OperationFailed
from subjects.codec import encode
from subjects.result import JobError
from tests.security.fuzz.corpus import MIB, Seed
from tests.security.fuzz.mutations import CANARY
from tests.workers.conftest import Bench
from workers.context import OperationResult
from workers.outputs import SCRATCH_PREFIX

OPERATIONS: Final = ("inspect", "convert")
GRACE_SECONDS: Final = 10.0
"""How long an attempt may take to end once its limit has passed."""

_FORMATS: Final = ("raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx")
_SCANNED_BYTES: Final = 64 * MIB


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks for: one of the operations, with a declared format or without, with parameters."""

    operation: str
    declared: str | None = None
    parameters: dict[str, Any] = {}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended: COMPLETED, the code of its error, or what it was not allowed to be.

    `broken` are the promises that it broke, with the details.
    """

    outcome: str
    seconds: float
    broken: tuple[tuple[str, str], ...] = ()


def tasks(rng: random.Random, seed: Seed) -> tuple[Task, ...]:
    """A job of each operation; few of them declare a format that the seed does not have.

    What a job may allow it allows, so that what lies behind is reached.
    """
    allowed = {"allow_snapshots": True, "allow_backing_chain": True}
    declared = rng.choices((None, seed.format, rng.choice(_FORMATS)), (6, 5, 1))[0]
    wanted = {"output_format": rng.choice(("raw", "qcow2", *_FORMATS)), "output_name": "result"}
    return (
        Task(operation="inspect", declared=declared, parameters=allowed),
        Task(operation="convert", declared=declared, parameters={**wanted, **allowed}),
    )


class Arena:
    """A directory with the images, the outputs, and files that nobody may touch or read."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._out = place / "out"
        self.images = place / "images"
        self.outside = place / "outside" / "secret.img"
        for each in (self.images, self.outside.parent):
            each.mkdir(parents=True)
        self.outside.write_bytes((CANARY + b"\n").ljust(512, b"\0") * 8192)
        (place / "secret.txt").write_bytes(CANARY)

    def lay_out(self, files: dict[str, bytes]) -> None:
        """Make these the only files beside the image."""
        for each in self.images.iterdir():
            each.unlink()
        for name, data in files.items():
            (self.images / name).write_bytes(data)

    async def attempt(self, seed: Seed, task: Task, limit: float) -> Verdict:
        """Run a job on what was laid out. `limit` is in seconds of wall time."""
        shutil.rmtree(self._out, ignore_errors=True)
        before, children = _snapshot(self._place, self._out), _children()
        began = time.monotonic()
        outcome, crash = await self._run(seed, task, limit)
        seconds = time.monotonic() - began
        broken = [("it ends with a code of the list", crash)] if crash else []
        if seconds > limit + GRACE_SECONDS:
            broken.append(("it ends at its limit", f"after {seconds:.1f} s"))
        if (after := _snapshot(self._place, self._out)) != before:
            broken.append(("no file outside is touched", _difference(before, after)))
        broken += self._leftovers(outcome, _children() - children)
        return Verdict(outcome=outcome, seconds=seconds, broken=tuple(broken))

    async def _run(self, seed: Seed, task: Task, limit: float) -> tuple[str, str]:
        """The outcome, and the defect if there was one."""
        more: dict[str, Any] = {"format": task.declared} if task.declared else {}
        image = self.images / seed.main
        try:
            with anyio.move_on_after(limit):
                done = await Bench(self._out).run(task.operation, image, parameters=task.parameters, **more)
                encode(done)
                return _told(done), ""
        except (OperationFailed, InvalidMessage) as error:
            encode(JobError(code=error.error_code, message=str(error), details=error.details))
            defect = str(error) if error.error_code is ErrorCode.INTERNAL else ""
            return str(error.error_code), defect
        except Exception as defect:  # noqa: BLE001 - a crash is what is looked for
            return "crash", f"{type(defect).__name__}: {defect}"
        return "TIMEOUT", ""

    def _leftovers(self, outcome: str, processes: set[int]) -> Iterator[tuple[str, str]]:
        if processes:
            yield "no process is left over", f"processes {sorted(processes)}"
        if opened := _open_below(self._place):
            yield "no file stays open", ", ".join(opened)
        for file in sorted(self._out.iterdir()) if self._out.exists() else ():
            if file.name.startswith(SCRATCH_PREFIX):
                yield "no scratch directory is left over", file.name
            elif not outcome.startswith("COMPLETED") and file.suffix != ".log":
                yield "what failed leaves its log only", file.name
            elif _holds(file, CANARY):
                yield "nothing outside is read", f"{file.name} holds what a file outside holds"


def _told(result: OperationResult) -> str:
    found = {each["code"] for each in result.summary.get("findings", ())}
    return f"COMPLETED, found {', '.join(sorted(found))}" if found else "COMPLETED"


def _snapshot(place: Path, without: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for directory, names, files in os.walk(place):
        if Path(directory) == place and without.name in names:
            names.remove(without.name)
        for name in (*names, *files):
            path = Path(directory, name)
            status = path.lstat()
            times = (status.st_mtime_ns, status.st_ctime_ns)
            found[str(path)] = (status.st_ino, status.st_mode, status.st_size, *times)
    return found


def _difference(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(sorted({name for name, _ in before.items() ^ after.items()}))


def _children() -> set[int]:
    return {each.pid for each in psutil.Process().children(recursive=True)}


def _open_below(place: Path) -> list[str]:
    found = []
    for each in Path("/proc/self/fd").iterdir():
        target = str(each.readlink()) if each.is_symlink() else ""
        if target.startswith(f"{place}/"):
            found.append(target)
    return found


def _holds(file: Path, marker: bytes) -> bool:
    """Whether a file's data, holes left out, contains the marker; it repeats, so its beginning will do."""
    with file.open("rb") as opened:
        size, at, rest = os.fstat(opened.fileno()).st_size, 0, _SCANNED_BYTES
        while at < size and rest > 0:
            try:
                start = os.lseek(opened.fileno(), at, os.SEEK_DATA)
            except OSError:
                return False
            at = os.lseek(opened.fileno(), start, os.SEEK_HOLE)
            data = os.pread(opened.fileno(), min(at - start, rest), start)
            rest -= len(data)
            if marker in data:
                return True
    return False
