"""inspect: what an image is, whether it is whole, how its disk is divided and what is on it.

Nothing is changed.
"""

from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from h2kbus.errors import OperationFailed
from workers.account import Account
from workers.context import JobContext, OperationResult
from workers.formats import FORMATS, Header
from workers.guest.attach import GUESTFS, open_rescue, overlay
from workers.image import CheckedImage, open_job_image
from workers.outputs import report_path, require_free
from workers.partitions import FILESYSTEM_BYTES, PartitionTable, filesystem_of, read_table
from workers.qemu import PROGRAM, Disk, QemuImg
from workers.report import Outcome
from workers.survey.look import look
from workers.survey.verdict import Verdict, judge
from workers.workplace import Workplace

_MAX_PROBED_PARTITIONS = 32
_EDGE_BYTES = 128 * 1024
_MAX_SENTENCE = 1000
"""The record travels on the bus; all reasons stand in the report."""


class Inspect:
    """Inspects one image. Only a sound image is read by a tool; of others the header's facts are told."""

    async def run(self, job: JobContext) -> OperationResult:
        """Gather the facts and publish the report.

        Raises OperationFailed for an image that is not what the job describes.
        """
        async with job.workplace() as place:
            work = _Inspection(job, place)
            require_free(place.output, report_path(job.output_path, job.job_id))
            job.report.enter("probe", "reading the image's header")
            async with work.open_image() as image:
                work.take_header(image)
                if not work.refused:
                    await work.info(image)
                    await work.check(image.disk)
                    await work.partitions(image.disk)
                    await work.guest(image.disk)
                image.require_unchanged()
            return await work.publish()


class _Inspection:
    """The facts found so far."""

    def __init__(self, job: JobContext, place: Workplace) -> None:
        self._job = job
        self._place = place
        self._qemu = QemuImg(place.tools)
        self._account = Account(job, place)
        self._facts: dict[str, Any] = {"path": job.spec.image.path, "declared_format": job.spec.image.format}
        self._rescue_commands: list[str] = []
        self._verdict: Verdict | None = None
        self._size = 0
        self.refused = False

    def open_image(self) -> AbstractAsyncContextManager[CheckedImage]:
        return open_job_image(self._job, self._place, self._account.on_checksum)

    def take_header(self, image: CheckedImage) -> None:
        """Take over what the header says, the backing file's name included; no tool has run yet."""
        header = image.header
        findings = [{"code": each.code, "reason": each.words} for each in image.findings]
        self._facts |= {
            "format": image.format,
            "variant": header.variant,
            "file_bytes": image.size,
            "virtual_size": header.virtual_size,
            "backing_chain": [str(each.file.path) for each in image.chain] or _named(header),
            "allowed": [each.reason for each in image.allowed],
            "extents": list(header.extents),
            "header": header.facts,
            "sha256": image.checksum,
            "findings": findings,
            **image.container,
        }
        self._account.warnings += [*image.warnings, *(each.reason for each in image.findings)]
        self.refused = bool(findings)
        if self.refused:
            self._refuse_tools(image)

    async def info(self, image: CheckedImage) -> None:
        info, self._account.kept["info.json"] = await image.examine(self._qemu)
        self._size = info.virtual_size
        self._account.tools[PROGRAM] = await self._qemu.version()
        self._facts |= {
            "virtual_size": info.virtual_size,
            "actual_size": info.actual_size,
            "dirty": info.dirty_flag,
            "snapshots": len(info.snapshots),
            "format_specific": info.format_specific,
        }
        self._account.notes.add("info", "applied", f"{image.format}, {info.virtual_size} bytes")

    async def check(self, disk: Disk) -> None:
        self._job.report.enter("check", "checking the image's consistency")
        if not self._job.wants("check"):
            return self._account.notes.add("check", "skipped", "not among the requested actions")
        if not FORMATS[disk.format].checked:
            self._facts["check"] = {"verdict": "unsupported", "detail": f"{disk.format} has nothing to check"}
            return self._account.notes.add("check", "not needed", f"{disk.format} has nothing to check")
        found = await self._qemu.check(disk)
        self._facts["check"] = msgspec.to_builtins(found)
        if found.verdict != "clean":
            self._account.warnings.append(f"the check says {found.verdict}: {found.detail}")
        return self._account.notes.add("check", "applied", found.verdict)

    async def partitions(self, disk: Disk) -> None:
        """Read the partition table; a v1 document asks for it by the means it needed there."""
        self._job.report.enter("partitions", "reading the partition table")
        attach = "nbd_attach" in self._job.spec.requested_actions
        if not (self._job.wants("partitions") or attach):
            return self._account.notes.add("partitions", "skipped", "not among the requested actions")
        if attach:
            self._account.notes.add("nbd_attach", "not needed", "the image is read without attaching it")
        content = _Content(self._qemu, disk, self._size)
        table = await self._with_filesystems(await read_table(content.read, self._size), content)
        self._facts["partition_table"] = msgspec.to_builtins(table)
        self._account.warnings += table.warnings
        return self._account.notes.add(
            "partitions", "applied", f"{table.scheme}, {len(table.partitions)} partitions"
        )

    async def guest(self, disk: Disk) -> None:
        """Look inside. A guest that cannot be opened is a warning: the image has been inspected."""
        self._job.report.enter("guest", "opening the guest")
        if not self._job.wants("guest"):
            return self._account.notes.add("guest", "skipped", "not among the requested actions")
        if GUESTFS not in self._job.capabilities:
            return self._leave_guest("skipped", "this worker can open no guest: it has no libguestfs")
        accelerated = "kvm" in self._job.capabilities
        try:
            # Journals are replayed and volume groups activated: all of that goes to a throwaway layer.
            async with (
                overlay(self._place, disk) as layer,
                open_rescue(self._place, layer, read_only=False, accelerated=accelerated) as rescue,
            ):
                self._account.tools[GUESTFS] = rescue.tool
                self._job.report.advance(0.5, "reading the guest")
                facts = await look(rescue, self._place.tools, self._account.notes)
                self._rescue_commands = rescue.commands
        except OperationFailed as failure:
            return self._leave_guest("failed", str(failure))
        self._verdict = judge(facts)
        self._facts |= {"guest": msgspec.to_builtins(facts), "verdict": msgspec.to_builtins(self._verdict)}
        return self._account.notes.add("guest", "applied", self._verdict.sentence)

    async def publish(self) -> OperationResult:
        """Publish the report; the last thing that happens."""
        self._job.report.enter("report", "writing the report")
        return await self._account.publish(
            image=self._facts,
            summary=self._summary(),
            commands=(*self._qemu.commands, *self._rescue_commands),
        )

    def _leave_guest(self, outcome: Outcome, why: str) -> None:
        self._account.notes.add("guest", outcome, why)
        self._account.warnings.append(f"the guest was not looked into: {why}")

    async def _with_filesystems(self, table: PartitionTable, content: "_Content") -> PartitionTable:
        """Add what each partition's first bytes look like."""
        partitions = list(table.partitions)
        for position, each in enumerate(partitions[:_MAX_PROBED_PARTITIONS]):
            head = await content.read(each.start_bytes, FILESYSTEM_BYTES)
            partitions[position] = msgspec.structs.replace(each, filesystem=filesystem_of(head))
            self._job.report.advance((position + 1) / len(partitions))
        return msgspec.structs.replace(table, partitions=tuple(partitions))

    def _refuse_tools(self, image: CheckedImage) -> None:
        self._account.notes.add("info", "applied", "the header's facts only")
        for action in ("check", "partitions", "guest"):
            self._account.notes.add(action, "skipped", f"no tool may read it: {image.findings[0].reason}")

    def _summary(self) -> dict[str, Any]:
        named = ("format", "variant", "virtual_size", "actual_size", "backing_chain", "check", "findings")
        summary = {each: self._facts[each] for each in named if self._facts.get(each)}
        table = self._facts.get("partition_table")
        if table is not None:
            summary["partitions"] = {"scheme": table["scheme"], "count": len(table["partitions"])}
        if self._verdict is not None:
            systems = [*self._facts["guest"].get("systems", ()), *self._facts["guest"].get("windows", ())]
            summary["systems"] = [each["name"] for each in systems]
            summary["boots_on_kvm"] = self._verdict.boots
            summary["verdict"] = self._verdict.sentence[:_MAX_SENTENCE]
        return summary


def _named(header: Header) -> list[str]:
    return [header.backing] if header.backing else []


class _Content:
    """Ranges of the disk's content. Both ends of the disk, where tables stand, are read only once."""

    def __init__(self, qemu: QemuImg, disk: Disk, size: int) -> None:
        self._qemu = qemu
        self._disk = disk
        self._tail_at = max(0, size - _EDGE_BYTES) // 512 * 512
        self._size = size
        self._edges: dict[int, bytes] = {}

    async def read(self, offset: int, length: int) -> bytes:
        if offset >= self._size:
            return b""
        for start in (0, self._tail_at):
            if start <= offset and offset + length <= start + _EDGE_BYTES:
                edge = await self._edge(start)
                return edge[offset - start : offset - start + length]
        return await self._qemu.read(self._disk, offset, length)

    async def _edge(self, start: int) -> bytes:
        if start not in self._edges:
            self._edges[start] = await self._qemu.read(self._disk, start, _EDGE_BYTES)
        return self._edges[start]
