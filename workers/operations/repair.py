"""Every operation that changes a guest: on a layer over the source, action by action, then written out whole.

`workers.repairs.table` says what each action does. The source is only read.
"""

import datetime as dt
from pathlib import Path
from typing import Any

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import ACCESS_ACTIONS, RepairParameters, converted_path
from subjects.lanes import DECLARED_NEEDS
from subjects.result import Outputs
from workers.context import JobContext, OperationResult
from workers.formats import FORMATS
from workers.guest.backends import Backend, choose, open_rescue, overlay, require_backend
from workers.guest.rescue import Rescue
from workers.guest.systems import mount, search, the_root
from workers.image import CheckedImage, open_image
from workers.outputs import StagedFile, report_path, require_free, sync_file
from workers.qemu import PROGRAM, Disk, ImageInfo, OnFraction, QemuImg
from workers.repairs.case import Case
from workers.repairs.table import REPAIRS
from workers.report import ActionLine, ActionNotes, Report, write_report
from workers.workplace import Workplace

_CONVERTS_WITHOUT_GUEST = frozenset({"offline_fix"})


class Repair:
    """Repairs one guest. A vital action that fails fails the job, and nothing is published then."""

    async def run(self, job: JobContext) -> OperationResult:
        """Repair, write, verify, boot if asked, publish.

        Raises OperationFailed with the code of what went wrong; its details say what had been done.
        """
        async with job.workplace() as place:
            work = _Mending(job, place)
            require_free(*work.targets)
            job.report.enter("probe", "reading the image's header")
            async with open_image(job.spec.image, work.on_checksum) as image:
                image.require_sound()
                await work.probe(image)
                async with overlay(place, image.disk) as layer:
                    await work.repair(layer)
                    await work.write(layer)
                image.require_unchanged()
            return await work.publish(image)


class _Mending:
    """The state of one repair: what was done so far, and the result on its way."""

    def __init__(self, job: JobContext, place: Workplace) -> None:
        self._job = job
        self._place = place
        self._parameters: RepairParameters = job.parameters
        self._qemu = QemuImg(place.tools)
        self._started_at = dt.datetime.now(dt.UTC)
        self._notes = ActionNotes(place.log)
        self._warnings: list[str] = []
        self._versions: dict[str, str] = {}
        self._rescue_commands: list[str] = []
        self._source: ImageInfo | None = None
        self._output = Disk(path=place.scratch / "output", format=self._parameters.output_format)
        self._output_info: ImageInfo | None = None
        self._target = Path(converted_path(job.spec, self._parameters))
        self._facts: dict[str, Any] = {}

    @property
    def targets(self) -> list[Path]:
        """Every name that the job is going to take."""
        report = report_path(self._job.output_path, self._job.job_id)
        return [self._target, report] if self._job.spec.artifacts.store_fixed_image else [report]

    def on_checksum(self, done: int, total: int) -> None:
        words = "verifying the image's checksum"
        self._job.report.advance(done / total, words, bytes_done=done, bytes_total=total)

    async def probe(self, image: CheckedImage) -> None:
        self._source, _ = await image.examine(self._qemu)
        self._warnings += image.warnings
        self._versions[PROGRAM] = await self._qemu.version()

    async def repair(self, layer: Disk) -> None:
        """Do the actions, or say why none can be done on this worker."""
        backend = self._backend()
        if backend is None:
            return self._leave_all()
        self._job.report.enter("open", f"opening the guest by {backend}")
        accelerated = "kvm" in self._job.capabilities
        async with open_rescue(
            self._place, layer, backend, read_only=False, accelerated=accelerated
        ) as rescue:
            self._versions[backend] = rescue.tool
            try:
                await self._work(rescue, backend)
                await rescue.unmount()
                await rescue.end()
            except OperationFailed as failure:
                raise self._with_history(failure) from failure
            finally:
                self._rescue_commands = rescue.commands
        return None

    async def write(self, layer: Disk) -> None:
        """Write the layer and the source below it as one image, and prove that it holds the same."""
        self._job.report.enter("write", f"writing {self._output.format}")
        await self._qemu.convert(layer, self._output, self._options(), self._progress())
        self._output_info, _ = await self._qemu.info(self._output)
        self._job.report.enter("verify", "comparing the result with what was repaired")
        await self._check_output()
        if not await self._qemu.compare(layer, self._output, self._progress()):
            message = f"the {self._output.format} image differs from what was repaired, and was thrown away"
            raise OperationFailed(ErrorCode.CONTENT_MISMATCH, message)
        await sync_file(self._output.path)

    async def publish(self, image: CheckedImage) -> OperationResult:
        """Give the results their final names; the last thing that happens."""
        self._job.report.enter("publish", "making the results durable")
        if not self._job.spec.artifacts.store_fixed_image:
            self._warnings.append("the repaired image was proven and not kept, as store_fixed_image says")
        report = self._place.scratch / "report.json"
        write_report(self._report(image), report)
        staged = [StagedFile(report, report_path(self._job.output_path, self._job.job_id))]
        if self._job.spec.artifacts.store_fixed_image:
            staged.insert(0, StagedFile(self._output.path, self._target))
        return await self._job.publish(staged, self._result())

    def _backend(self) -> Backend | None:
        required = self._job.spec.capability_requirements
        asked = frozenset(token for field, token in DECLARED_NEEDS.items() if getattr(required, field))
        if self._job.spec.operation in _CONVERTS_WITHOUT_GUEST:
            return choose(self._job.capabilities, asked)
        return require_backend(self._job.capabilities, asked)

    def _leave_all(self) -> None:
        """Level 1: the image is converted, and every client sees which fixes were not done."""
        for action in self._wanted():
            self._leave(action, "this worker can open no guest: it has neither guestfs nor nbd")

    def _leave(self, action: str, why: str) -> None:
        self._notes.add(action, "skipped", why)
        self._warnings.append(f"{action} was not done: {why}")

    def _wanted(self) -> list[str]:
        """The actions with a repair behind them, in the order of the table: it is the order that works."""
        return [each for each in REPAIRS if self._job.wants(each)]

    async def _work(self, rescue: Rescue, backend: Backend) -> None:
        case = Case(rescue, self._place.tools, self._notes, self._parameters)
        self._note_access(backend)
        self._job.report.enter("survey", "looking at the disk")
        await case.read_disks()
        wanted = self._wanted()
        await self._do(case, [each for each in wanted if REPAIRS[each].stage == "disk"])
        inside = [each for each in wanted if REPAIRS[each].stage != "disk"]
        if inside and await self._enter(case, inside):
            await self._do(case, inside)

    async def _enter(self, case: Case, inside: list[str]) -> bool:
        """Mount the guest; False if there is none, and no action insists on one."""
        found = await search(case.rescue, case.disks)
        try:
            root = the_root(found, case.disks, self._parameters.root)
        except OperationFailed as failure:
            if any(REPAIRS[each].stage == "system" for each in inside):
                raise
            for each in inside:
                self._notes.add(each, "skipped", str(failure))
            return False
        system = await mount(case.rescue, case.disks, root)
        self._warnings += system.problems
        self._facts = {"system": root.release.name, "root": root.volume.device}
        case.enter(system)
        return True

    async def _do(self, case: Case, actions: list[str]) -> None:
        if actions:
            self._job.report.enter("repair", actions[0])
        for position, action in enumerate(actions):
            self._job.report.advance(position / len(actions), action)
            try:
                await REPAIRS[action].work(case)
            except OperationFailed as failure:
                self._notes.add(action, "failed", str(failure))
                if REPAIRS[action].vital:
                    raise
                self._warnings.append(f"{action} failed: {failure}")

    def _note_access(self, backend: Backend) -> None:
        for action in ACCESS_ACTIONS:
            if action in self._job.spec.requested_actions:
                self._notes.add(action, "not needed", f"the guest's disk is reached by {backend}")

    def _with_history(self, failure: OperationFailed) -> OperationFailed:
        """The failure with everything that was done before it, and what was not any more."""
        said = {each.action for each in self._notes.lines}
        for action in self._wanted():
            if not any(each == action or each.startswith(f"{action} ") for each in said):
                self._notes.add(action, "skipped", "an action before it failed")
        lines = [msgspec.to_builtins(each) for each in self._notes.lines]
        return OperationFailed(failure.error_code, str(failure), **{**failure.details, "actions": lines})

    async def _check_output(self) -> None:
        if not FORMATS[self._output.format].checked:
            return
        found = await self._qemu.check(self._output)
        if found.verdict not in {"clean", "leaks"}:
            raise OperationFailed(
                ErrorCode.CONTENT_MISMATCH, f"the result is {found.verdict}: {found.detail}"
            )

    def _options(self) -> list[str]:
        options = ["-W"] if FORMATS[self._output.format].out_of_order else []
        compressed = self._output.format == "qcow2" and self._parameters.compress
        return [*options, "-c"] if compressed else options

    def _progress(self) -> OnFraction:
        total = self._source.virtual_size if self._source else 0

        def advance(fraction: float) -> None:
            self._job.report.advance(fraction, bytes_done=int(fraction * total), bytes_total=total)

        return advance

    def _report(self, image: CheckedImage) -> Report:
        output = msgspec.to_builtins(self._output_info)
        return Report(
            job_id=self._job.job_id,
            operation=self._job.spec.operation,
            attempt=self._job.attempt,
            started_at=self._started_at,
            ended_at=dt.datetime.now(dt.UTC),
            spec=self._job.spec,
            actions=tuple(self._notes.lines),
            image={
                **msgspec.to_builtins(self._source),
                "path": str(image.path),
                "sha256": image.checksum,
                **self._facts,
            },
            output={**output, "path": str(self._target)},
            warnings=tuple(self._warnings),
            tools=self._versions,
            commands=(*self._qemu.commands, *self._rescue_commands),
        )

    def _result(self) -> OperationResult:
        stored = self._job.spec.artifacts.store_fixed_image
        tools = self._place.tools
        return OperationResult(
            outputs=Outputs(
                fixed_image=str(self._target) if stored else None,
                report=str(report_path(self._job.output_path, self._job.job_id)),
                logs=str(self._place.log.path),
            ),
            disk_read_bytes=tools.read_bytes,
            disk_write_bytes=tools.written_bytes,
            warnings=tuple(self._warnings),
            summary={**self._facts, "actions": _outcomes(self._notes.lines)},
        )


def _names(image: CheckedImage) -> dict[str, Any]:
    return {"path": str(image.path), "sha256": image.checksum}


def _outcomes(lines: list[ActionLine]) -> dict[str, str]:
    return {each.action: each.outcome for each in lines}
