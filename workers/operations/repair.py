"""Every operation that changes a guest: on a layer over the source, action by action, then written out whole.

`workers.repairs.table` says what each action does. The source is only read.
"""

from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import ACCESS_ACTIONS, RepairParameters
from workers.account import Account
from workers.context import JobContext, OperationResult
from workers.guest.attach import GUESTFS, open_rescue, overlay, require_guestfs
from workers.guest.rescue import Rescue
from workers.guest.systems import mount, search, the_root
from workers.image import CheckedImage, open_job_image
from workers.outputs import require_free
from workers.qemu import PROGRAM, Disk, ImageInfo, QemuImg
from workers.repairs.case import Case
from workers.repairs.table import REPAIRS
from workers.repairs.windows import ACTION as WINDOWS_DRIVERS
from workers.repairs.windows import Windows, convert_windows, read_windows, require_capability
from workers.result_image import ResultImage
from workers.side_by_side import side_by_side
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
            require_free(place.output, *work.result.names)
            job.report.enter("probe", "reading the image's header")
            async with work.open_image() as image:
                image.require_sound()
                await work.probe(image)
                async with overlay(place, image.disk) as layer:
                    await work.repair(layer)
                    await work.convert_windows(layer)
                    await work.write(layer)
                image.require_unchanged()
                await work.result.boot()
                image.require_unchanged()
            return await work.publish(image)


class _Mending:
    """The state of one repair: what was done so far, and the result on its way."""

    def __init__(self, job: JobContext, place: Workplace) -> None:
        self._job = job
        self._place = place
        self._parameters: RepairParameters = job.parameters
        self._qemu = QemuImg(place.tools)
        self._account = Account(job, place)
        self._rescue_commands: list[str] = []
        self._source: ImageInfo | None = None
        self._facts: dict[str, Any] = {}
        self._windows: Windows | None = None
        self._tried = self._planned = 0
        self.result = ResultImage(job, place, self._qemu, self._account)

    def open_image(self) -> AbstractAsyncContextManager[CheckedImage]:
        return open_job_image(self._job, self._place, self._account.on_checksum)

    async def probe(self, image: CheckedImage) -> None:
        self._source, self._account.kept["source-info.json"] = await image.examine(self._qemu)
        self._account.warnings += image.warnings
        self._account.tools[PROGRAM] = await self._qemu.version()

    async def repair(self, layer: Disk) -> None:
        """Do the actions, or say why none can be done on this worker."""
        capabilities = self._job.capabilities
        if GUESTFS not in capabilities and self._job.spec.operation in _CONVERTS_WITHOUT_GUEST:
            return self._leave_all()
        require_guestfs(capabilities)
        self._job.report.enter("open", "opening the guest")
        accelerated = "kvm" in self._job.capabilities
        async with open_rescue(self._place, layer, read_only=False, accelerated=accelerated) as rescue:
            self._account.tools[GUESTFS] = rescue.tool
            try:
                await self._work(rescue)
                await rescue.unmount()
                await rescue.end()
            except OperationFailed as failure:
                raise self._with_history(failure) from failure
            finally:
                self._rescue_commands = rescue.commands
        return None

    async def convert_windows(self, layer: Disk) -> None:
        """Give a Windows guest its drivers, if one was found, and look whether they are there."""
        system = self._windows
        if system is None or system.has_drivers:
            return
        report = self._job.report
        report.enter("repair", f"giving drivers to {system.name}")
        accelerated = "kvm" in self._job.capabilities
        await convert_windows(
            self._place, layer, accelerated=accelerated, on_stage=lambda words: report.advance(0.0, words)
        )
        async with open_rescue(self._place, layer, read_only=True, accelerated=accelerated) as rescue:
            after = await read_windows(rescue, tuple(await rescue.windows()))
        if not after.has_drivers:
            raise OperationFailed(ErrorCode.REPAIR_FAILED, f"virt-v2v ran, and {system.name} has no drivers")
        self._account.notes.add(
            WINDOWS_DRIVERS, "applied", f"virt-v2v; {system.name} has a virtio disk driver"
        )

    async def write(self, layer: Disk) -> None:
        """Write the layer and the source below it as one image, and prove that it holds the same."""
        size = self._known_source.virtual_size
        self._job.report.enter("write", f"writing {self.result.disk.format}")
        await self.result.write(layer, self._known_source)
        self._job.report.enter("verify", "comparing the result with what was repaired")
        compare = partial(self.result.require_same, layer, self._known_source, self.result.progress(size))
        await side_by_side(self.result.sync, self.result.learn, self.result.check, compare)
        self.result.require_size(size)

    async def publish(self, image: CheckedImage) -> OperationResult:
        """Give the results their final names; the last thing that happens."""
        self._job.report.enter("publish", "making the results durable")
        await self.result.take_checksum()
        return await self._account.publish(
            image={
                **_builtins(self._known_source),
                "path": str(image.path),
                "file_bytes": image.size,
                "sha256": image.checksum,
                **image.container,
                **self._facts,
            },
            output=self.result.facts(),
            commands=(*self._qemu.commands, *self._rescue_commands),
            fixed_image=self.result.staged,
            summary={**self._facts, "actions": self._account.outcomes, **self.result.booted},
        )

    def _leave_all(self) -> None:
        """Level 1: the image is converted, and every client sees which fixes were not done."""
        for action in self._wanted():
            self._leave(action, "this worker can open no guest: it has no libguestfs")

    def _leave(self, action: str, why: str) -> None:
        self._account.notes.add(action, "skipped", why)
        self._account.warnings.append(f"{action} was not done: {why}")

    def _wanted(self) -> list[str]:
        """The actions with a repair behind them, in the order of the table: it is the order that works."""
        return [each for each in REPAIRS if self._job.wants(each)]

    async def _work(self, rescue: Rescue) -> None:
        case = Case(rescue, self._place.tools, self._account.notes, self._parameters)
        self._note_access()
        self._job.report.enter("survey", "looking at the disk")
        await case.read_disks()
        wanted = self._wanted()
        self._planned = len(wanted)
        self._job.report.enter("repair", f"actions: {len(wanted)}")
        await self._do(case, [each for each in wanted if REPAIRS[each].stage == "disk"])
        inside = [each for each in wanted if REPAIRS[each].stage != "disk"]
        if inside and await self._enter(case, inside):
            await self._do(case, inside)

    async def _enter(self, case: Case, inside: list[str]) -> bool:
        """Mount the guest; False if there is none, and no action insists on one."""
        found = await search(case.rescue, case.disks)
        if found.windows and not found.roots and self._job.wants(WINDOWS_DRIVERS):
            await self._meet_windows(case, found.windows, inside)
            return False
        try:
            root = the_root(found, case.disks, self._parameters.root)
        except OperationFailed as failure:
            if any(REPAIRS[each].stage == "system" for each in inside):
                raise
            for each in inside:
                self._account.notes.add(each, "skipped", str(failure))
            return False
        system = await mount(case.rescue, case.disks, root)
        self._account.warnings += system.problems
        self._facts = {"system": root.release.name, "root": root.volume.device}
        case.enter(system)
        return True

    async def _meet_windows(self, case: Case, found: tuple[dict[str, str], ...], inside: list[str]) -> None:
        """A Windows guest gets its drivers once its disk is free again; the rest is for Linux."""
        system = await read_windows(case.rescue, found)
        self._facts = {"system": system.name, "root": system.root}
        for each in inside:
            self._account.notes.add(each, "skipped", "the guest is Windows")
        if system.has_drivers:
            self._account.notes.add(WINDOWS_DRIVERS, "not needed", "the guest has a virtio disk driver")
        else:
            require_capability(self._job.capabilities, system)
        self._windows = system

    async def _do(self, case: Case, actions: list[str]) -> None:
        for action in actions:
            self._job.report.advance(self._tried / self._planned, action)
            self._tried += 1
            try:
                await REPAIRS[action].work(case)
            except OperationFailed as failure:
                self._account.notes.add(action, "failed", str(failure))
                if REPAIRS[action].vital:
                    raise
                self._account.warnings.append(f"{action} failed: {failure}")

    def _note_access(self) -> None:
        for action in ACCESS_ACTIONS:
            if action in self._job.spec.requested_actions:
                self._account.notes.add(action, "not needed", "the guest's disk is reached by libguestfs")

    def _with_history(self, failure: OperationFailed) -> OperationFailed:
        """The failure with everything that was done before it, and what was not any more."""
        said = {each.action for each in self._account.notes.lines}
        for action in self._wanted():
            if not any(each == action or each.startswith(f"{action} ") for each in said):
                self._account.notes.add(action, "skipped", "an action before it failed")
        lines = [msgspec.to_builtins(each) for each in self._account.notes.lines]
        return OperationFailed(failure.error_code, str(failure), **{**failure.details, "actions": lines})

    @property
    def _known_source(self) -> ImageInfo:
        if self._source is None:
            raise ValueError("the image has not been probed yet")
        return self._source


def _builtins(info: ImageInfo) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(info)
    return built
