"""Takes broken guests over the bus: they are booted, repaired, booted again and repaired once more."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from h2kbus.client import Bus
from subjects.codes import ErrorCode
from subjects.record import JobRecord
from subjects.spec import ArtifactPolicy, Audit, ImageSpec, JobSpec
from subjects.states import State
from tests.guests.breakage import BREAKAGES
from tests.guests.build import guest
from tests.guests.cases import Case

JOB_SECONDS: Final = 1800.0
FAILING_BOOT_SECONDS: Final = 150
"""A guest that waits for a device gives up after 90 s of its own time, and is slow in an emulated machine."""
SILENT_BOOT_SECONDS: Final = 90
"""A machine without a boot loader waits for nothing; a sound guest speaks within a few seconds."""

AT_ONCE: Final = 2


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """How a boot test over the bus ended. `stage` is its verdict, or the code of another failure."""

    boots: bool
    stage: str
    seconds: float = 0.0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """How an operation ended: `actions` are its outcomes by action, `error` its failure in words."""

    completed: bool
    actions: dict[str, str] = {}
    seconds: float = 0.0
    error: str = ""
    image: str | None = None

    def outcomes_of(self, action: str) -> set[str]:
        """What became of the action; one that is done for each device has a line for each."""
        return {word for name, word in self.actions.items() if name.partition(" ")[0] == action}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one case came to."""

    before: Boot
    first: Run
    after: Boot
    second: Run | None
    source_unchanged: bool


class Campaign:
    """Runs cases, as many at once as the worker has slots. Each can be waited for by its name."""

    def __init__(self, bus: Bus, place: Path, cases: Iterable[Case], say: Callable[[str], None]) -> None:
        self._bus = bus
        self._place = place
        self._cases = {each.name: each for each in cases}
        self._say = say
        self._done = {name: anyio.Event() for name in self._cases}
        self.outcomes: dict[str, Outcome] = {}
        self._defects: dict[str, Exception] = {}

    async def outcome(self, case: Case) -> Outcome:
        """What the case came to, as soon as it has."""
        await self._done[case.name].wait()
        if case.name in self._defects:
            raise self._defects[case.name]
        return self.outcomes[case.name]

    async def run(self) -> None:
        limit = anyio.CapacityLimiter(AT_ONCE)
        async with anyio.create_task_group() as group:
            for case in self._cases.values():
                group.start_soon(self._run_one, case, limit)

    async def _run_one(self, case: Case, limit: anyio.CapacityLimiter) -> None:
        try:
            async with limit:
                self.outcomes[case.name] = await self._try(case)
            self._say(f"{case.name}: {told(self.outcomes[case.name])}")
        except Exception as defect:  # noqa: BLE001 - it is the result of this case, and its tests raise it
            self._defects[case.name] = defect
        finally:
            self._done[case.name].set()

    async def _try(self, case: Case) -> Outcome:
        place = self._place / case.name
        place.mkdir()
        disk = place / "source.raw"
        await anyio.to_thread.run_sync(_break, case, disk)
        checksum = await anyio.to_thread.run_sync(_checksum, disk)
        silent = case.breakage == "boot-code"
        before = await self._boot(disk, SILENT_BOOT_SECONDS if silent else FAILING_BOOT_SECONDS)
        first = await self._operate(case, disk)
        after, second = Boot(boots=False, stage="there is no result"), None
        if first.image is not None:
            after = await self._boot(Path(first.image))
            second = await self._operate(case, Path(first.image)) if case.repeatable else None
        unchanged = await anyio.to_thread.run_sync(_checksum, disk) == checksum
        await anyio.to_thread.run_sync(shutil.rmtree, place)
        return Outcome(before=before, first=first, after=after, second=second, source_unchanged=unchanged)

    async def _boot(self, disk: Path, seconds: int = 900) -> Boot:
        record = await self._job("boot_test", disk, {"boot_seconds": seconds})
        assert record.result is not None
        if record.state is State.COMPLETED:
            summary = record.result.summary
            return Boot(boots=True, stage=summary["stage"], seconds=summary["seconds"])
        error = record.result.error
        assert error is not None
        if error.code is not ErrorCode.BOOT_FAILED:
            raise AssertionError(f"the boot test itself failed: {error.code}: {error.message}")
        return Boot(boots=False, stage=error.details["stage"], seconds=error.details["seconds"])

    async def _operate(self, case: Case, disk: Path) -> Run:
        record = await self._job(case.operation, disk, case.parameters)
        assert record.result is not None
        seconds = round(record.result.metrics.execution_seconds, 1)
        if record.result.error is not None:
            error = record.result.error
            words = f"{error.code}: {error.message} {error.details}"
            return Run(completed=False, seconds=seconds, error=words)
        return Run(
            completed=True,
            actions=record.result.summary["actions"],
            seconds=seconds,
            image=record.result.outputs.fixed_image,
        )

    async def _job(self, operation: str, disk: Path, parameters: dict[str, Any]) -> JobRecord:
        output = disk.parent / f"{operation}-of-{disk.stem}"
        spec = JobSpec(
            operation=operation,
            image=ImageSpec(path=str(disk)),
            artifacts=ArtifactPolicy(output_path=str(output), log_upload=False),
            audit=Audit(requested_by="tester"),
            parameters=parameters,
        )
        with anyio.fail_after(JOB_SECONDS):
            return await self._bus.result(await self._bus.submit(spec))


def told(outcome: Outcome) -> str:
    """One line for people who wait."""
    second = outcome.second.actions if outcome.second else "-"
    first = outcome.first.actions or outcome.first.error
    done = f"{first} in {outcome.first.seconds} s"
    return f"before {outcome.before.stage}, {done}, after {outcome.after.stage}, again {second}"


def _break(case: Case, disk: Path) -> None:
    subprocess.run(["cp", "--sparse=always", guest(case.guest), disk], check=True, timeout=300)
    if case.breakage != "none":
        BREAKAGES[case.breakage](disk, case.guest)


def _checksum(disk: Path) -> str:
    with disk.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
