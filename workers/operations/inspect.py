"""inspect: what an image is, whether it is whole, and how its disk is divided. Nothing is changed."""

import datetime as dt
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from subjects.builtin import InspectParameters
from subjects.result import Outputs
from workers.context import JobContext, OperationResult
from workers.formats import FORMATS
from workers.image import CheckedImage, open_image
from workers.outputs import StagedFile, report_path, require_free
from workers.partitions import FILESYSTEM_BYTES, PartitionTable, filesystem_of, read_table
from workers.qemu import PROGRAM, Disk, QemuImg
from workers.report import ActionNotes, Report, write_report
from workers.workplace import Workplace, stage_intermediates

_MAX_PROBED_PARTITIONS = 32
_EDGE_BYTES = 128 * 1024


class Inspect:
    """Inspects one image. Only a sound image is read by a tool; of others the header's facts are told."""

    async def run(self, job: JobContext) -> OperationResult:
        """Gather the facts and publish the report.

        Raises OperationFailed for an image that is not what the job describes.
        """
        async with job.workplace() as place:
            work = _Inspection(job, place)
            require_free(report_path(job.output_path, job.job_id))
            job.report.enter("probe", "reading the image's header")
            async with work.open_image() as image:
                work.take_header(image)
                if not work.refused:
                    await work.info(image)
                    await work.check(image.disk)
                    await work.partitions(image.disk)
                image.require_unchanged()
            return await work.publish()


class _Inspection:
    """The facts found so far."""

    def __init__(self, job: JobContext, place: Workplace) -> None:
        self._job = job
        self._place = place
        self._qemu = QemuImg(place.tools)
        self._started_at = dt.datetime.now(dt.UTC)
        self._facts: dict[str, Any] = {"path": job.spec.image.path, "declared_format": job.spec.image.format}
        self._notes = ActionNotes(place.log)
        self._warnings: list[str] = []
        self._kept: dict[str, bytes] = {}
        self._versions: dict[str, str] = {}
        self._size = 0
        self.refused = False

    def open_image(self) -> AbstractAsyncContextManager[CheckedImage]:
        parameters: InspectParameters = self._job.parameters
        return open_image(self._job.spec.image, self._on_checksum, member=parameters.disk)

    def _on_checksum(self, done: int, total: int) -> None:
        words = "verifying the image's checksum"
        self._job.report.advance(done / total, words, bytes_done=done, bytes_total=total)

    def take_header(self, image: CheckedImage) -> None:
        """Take over what the header says, the backing file's name included; no tool has run yet."""
        header = image.header
        findings = [{"code": each.code, "reason": each.reason} for each in image.findings]
        self._facts |= {
            "format": image.format,
            "variant": header.variant,
            "file_bytes": image.size,
            "virtual_size": header.virtual_size,
            "backing_chain": [header.backing] if header.backing else [],
            "extents": list(header.extents),
            "header": header.facts,
            "sha256": image.checksum,
            "findings": findings,
            **image.container,
        }
        self._warnings += [*image.warnings, *(each.reason for each in image.findings)]
        self.refused = bool(findings)
        if self.refused:
            self._refuse_tools(image)

    async def info(self, image: CheckedImage) -> None:
        info, self._kept["info.json"] = await image.examine(self._qemu)
        self._size = info.virtual_size
        self._versions[PROGRAM] = await self._qemu.version()
        self._facts |= {
            "virtual_size": info.virtual_size,
            "actual_size": info.actual_size,
            "dirty": info.dirty_flag,
            "snapshots": len(info.snapshots),
            "format_specific": info.format_specific,
        }
        self._notes.add("info", "applied", f"{image.format}, {info.virtual_size} bytes")

    async def check(self, disk: Disk) -> None:
        self._job.report.enter("check", "checking the image's consistency")
        if not self._job.wants("check"):
            return self._notes.add("check", "skipped", "not among the requested actions")
        if not FORMATS[disk.format].checked:
            self._facts["check"] = {"verdict": "unsupported", "detail": f"{disk.format} has nothing to check"}
            return self._notes.add("check", "not needed", f"{disk.format} has nothing to check")
        found = await self._qemu.check(disk)
        self._facts["check"] = msgspec.to_builtins(found)
        if found.verdict != "clean":
            self._warnings.append(f"the check says {found.verdict}: {found.detail}")
        return self._notes.add("check", "applied", found.verdict)

    async def partitions(self, disk: Disk) -> None:
        """Read the partition table; a v1 document asks for it by the means it needed there."""
        self._job.report.enter("partitions", "reading the partition table")
        attach = "nbd_attach" in self._job.spec.requested_actions
        if not (self._job.wants("partitions") or attach):
            return self._notes.add("partitions", "skipped", "not among the requested actions")
        if attach:
            self._notes.add("nbd_attach", "not needed", "the image is read without attaching it")
        content = _Content(self._qemu, disk, self._size)
        table = await self._with_filesystems(await read_table(content.read, self._size), content)
        self._facts["partition_table"] = msgspec.to_builtins(table)
        self._warnings += table.warnings
        return self._notes.add("partitions", "applied", f"{table.scheme}, {len(table.partitions)} partitions")

    async def publish(self) -> OperationResult:
        """Publish the report; the last thing that happens."""
        self._job.report.enter("report", "writing the report")
        report = self._place.scratch / "report.json"
        write_report(self._report(), report)
        target = report_path(self._job.output_path, self._job.job_id)
        kept = self._kept if self._job.spec.artifacts.keep_intermediates else {}
        intermediates = stage_intermediates(self._place, kept, self._job.output_path, self._job.job_id)
        result = OperationResult(
            outputs=Outputs(
                report=str(target),
                logs=str(self._place.log.path),
                intermediates=tuple(str(each.target) for each in intermediates),
            ),
            disk_read_bytes=self._place.tools.read_bytes,
            disk_write_bytes=self._place.tools.written_bytes,
            warnings=tuple(self._warnings),
            summary=self._summary(),
        )
        return await self._job.publish([StagedFile(report, target), *intermediates], result)

    async def _with_filesystems(self, table: PartitionTable, content: "_Content") -> PartitionTable:
        """Add what each partition's first bytes look like."""
        partitions = list(table.partitions)
        for position, each in enumerate(partitions[:_MAX_PROBED_PARTITIONS]):
            head = await content.read(each.start_bytes, FILESYSTEM_BYTES)
            partitions[position] = msgspec.structs.replace(each, filesystem=filesystem_of(head))
            self._job.report.advance((position + 1) / len(partitions))
        return msgspec.structs.replace(table, partitions=tuple(partitions))

    def _refuse_tools(self, image: CheckedImage) -> None:
        self._notes.add("info", "applied", "the header's facts only")
        for action in ("check", "partitions"):
            self._notes.add(action, "skipped", f"no tool may read it: {image.findings[0].reason}")

    def _report(self) -> Report:
        return Report(
            job_id=self._job.job_id,
            operation="inspect",
            attempt=self._job.attempt,
            started_at=self._started_at,
            ended_at=dt.datetime.now(dt.UTC),
            spec=self._job.spec,
            actions=tuple(self._notes.lines),
            image=self._facts,
            warnings=tuple(self._warnings),
            tools=self._versions,
            commands=self._qemu.commands,
        )

    def _summary(self) -> dict[str, Any]:
        named = ("format", "variant", "virtual_size", "actual_size", "backing_chain", "check", "findings")
        summary = {each: self._facts[each] for each in named if self._facts.get(each)}
        table = self._facts.get("partition_table")
        if table is not None:
            summary["partitions"] = {"scheme": table["scheme"], "count": len(table["partitions"])}
        return summary


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
