"""convert: the image's content in another format, proven to be the same content."""

import datetime as dt
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import ConvertParameters, converted_path
from subjects.result import Outputs
from workers.context import JobContext, OperationResult
from workers.formats import FORMATS
from workers.image import CheckedImage, open_image
from workers.outputs import (
    StagedFile,
    free_bytes,
    report_path,
    require_free,
    sync_file,
)
from workers.qemu import PROGRAM, Disk, ImageInfo, OnFraction, QemuImg
from workers.report import ActionNotes, Report, write_report
from workers.workplace import Workplace, stage_intermediates

_ROUNDING_BYTES = 16 << 20
"""No format rounds the size of a disk up by more than this."""

_LIKE_QCOW2 = frozenset({"qcow2", "raw", "vmdk"})
"""Formats that leave out what is not allocated in pieces of at most 64 KiB, as qcow2 does. Those with
blocks of a MiB and more may need as much as the whole disk."""


class Convert:
    """Converts one image. The source is only read; the result gets its name when it has been proven."""

    async def run(self, job: JobContext) -> OperationResult:
        """Convert, check, compare, publish. Raises OperationFailed with the code of what went wrong."""
        async with job.workplace() as place:
            work = _Conversion(job, place)
            require_free(*work.targets)
            job.report.enter("probe", "reading the image's header")
            async with work.open_image() as image:
                image.require_sound()
                await work.probe(image)
                await work.convert(image.disk)
                await work.prove(image.disk)
                image.require_unchanged()
            return await work.publish(image)


class _Conversion:
    """The state of one conversion: what is known about both images, and what was done."""

    def __init__(self, job: JobContext, place: Workplace) -> None:
        self._job = job
        self._place = place
        self._parameters: ConvertParameters = job.parameters
        self._qemu = QemuImg(place.tools)
        self._started_at = dt.datetime.now(dt.UTC)
        self._notes = ActionNotes(place.log)
        self._warnings: list[str] = []
        self._kept: dict[str, bytes] = {}
        self._versions: dict[str, str] = {}
        self._output = Disk(path=place.scratch / "output", format=self._parameters.output_format)
        self._target = Path(converted_path(job.spec, self._parameters))
        self._source_info: ImageInfo | None = None
        self._output_info: ImageInfo | None = None

    @property
    def targets(self) -> list[Path]:
        """Every name that the job is going to take."""
        report = report_path(self._job.output_path, self._job.job_id)
        return [self._target, report] if self._job.spec.artifacts.store_fixed_image else [report]

    def open_image(self) -> AbstractAsyncContextManager[CheckedImage]:
        return open_image(self._job.spec.image, self._on_checksum, member=self._parameters.disk)

    def _on_checksum(self, done: int, total: int) -> None:
        words = "verifying the image's checksum"
        self._job.report.advance(done / total, words, bytes_done=done, bytes_total=total)

    async def probe(self, image: CheckedImage) -> None:
        """Learn the source's size, and warn if the result may not fit."""
        self._source_info, self._kept["source-info.json"] = await image.examine(self._qemu)
        self._warnings += image.warnings
        if image.format == "qcow2":
            await self._check_source(image.disk)
        await self._look_for_space(image.disk)

    async def convert(self, source: Disk) -> None:
        """Write the output into the scratch directory."""
        self._job.report.enter("convert", f"writing {self._parameters.output_format}")
        await self._qemu.convert(source, self._output, self._options(), self._progress())
        self._output_info, self._kept["output-info.json"] = await self._qemu.info(self._output)
        self._notes.add("convert", "applied", f"{source.format} to {self._output.format}")

    async def prove(self, source: Disk) -> None:
        """Check and compare while the output is on its way to stable storage."""
        failures: list[OperationFailed] = []
        async with anyio.create_task_group() as group:
            group.start_soon(self._collect, failures, self._sync_output())
            group.start_soon(self._collect, failures, self._learn_version())
            await self._collect(failures, self._check_and_compare(source))
        for failure in failures:
            raise failure

    async def publish(self, image: CheckedImage) -> OperationResult:
        """Give the results their final names; the last thing that happens."""
        self._job.report.enter("publish", "making the results durable")
        if not self._job.spec.artifacts.store_fixed_image:
            self._warnings.append("the converted image was proven and not kept, as store_fixed_image says")
        report = self._place.scratch / "report.json"
        write_report(self._report(image), report)
        kept = self._kept if self._job.spec.artifacts.keep_intermediates else {}
        intermediates = stage_intermediates(self._place, kept, self._job.output_path, self._job.job_id)
        staged = [StagedFile(report, report_path(self._job.output_path, self._job.job_id)), *intermediates]
        if self._job.spec.artifacts.store_fixed_image:
            staged.insert(0, StagedFile(self._output.path, self._target))
        result = self._result(image, [str(each.target) for each in intermediates])
        return await self._job.publish(staged, result)

    async def _check_source(self, source: Disk) -> None:
        """Look for a missing end, which qcow2 alone hides from its header.

        The headers of the other formats have been held against the file's size.
        """
        found = await self._qemu.check(source)
        if found.verdict == "corrupt":
            raise OperationFailed(ErrorCode.IMAGE_CORRUPT, f"{source.path}: {found.detail}")
        if found.verdict == "leaks":
            self._warnings.append("the source has leaked clusters, which are harmless")

    async def _look_for_space(self, source: Disk) -> None:
        """Warn if the result may not fit, and refuse nothing, because nothing sound can be said.

        What the source allocates bounds the result from above only: zeros that it stores are not written
        again (20 MiB of them measure as 20 MiB and become 200 KiB), and telling them from content takes
        reading all of it, which is what the conversion does. Nor is the free space a bound: others may
        make room meanwhile, and a filesystem may compress what it is given.
        """
        free = free_bytes(self._place.scratch)
        needed = self._known_source.virtual_size
        if free >= needed or self._compressed:
            return
        if self._output.format in _LIKE_QCOW2:
            needed = await self._qemu.measure(source, "qcow2") or needed
        if free < needed:
            self._warnings.append(f"the result may need {needed} bytes and {free} are free")
            self._place.log.line(self._warnings[-1])

    async def _collect(self, failures: list[OperationFailed], step: Coroutine[Any, Any, None]) -> None:
        """Await one step; its failure must not leave the task group as a group of errors."""
        try:
            await step
        except OperationFailed as failure:
            failures.append(failure)

    async def _sync_output(self) -> None:
        if self._job.spec.artifacts.store_fixed_image:
            await sync_file(self._output.path)

    async def _learn_version(self) -> None:
        self._versions[PROGRAM] = await self._qemu.version()

    async def _check_and_compare(self, source: Disk) -> None:
        await self._check_output()
        await self._compare(source)

    async def _check_output(self) -> None:
        self._job.report.enter("check")
        if not self._job.wants("check"):
            return self._notes.add("check", "skipped", "not among the requested actions")
        if not FORMATS[self._output.format].checked:
            return self._notes.add("check", "not needed", f"{self._output.format} has nothing to check")
        found = await self._qemu.check(self._output)
        self._kept["check.txt"] = f"{found.verdict}: {found.detail}\n".encode()
        if found.verdict not in {"clean", "leaks"}:
            raise OperationFailed(
                ErrorCode.CONTENT_MISMATCH, f"the result is {found.verdict}: {found.detail}"
            )
        return self._notes.add("check", "applied", found.verdict)

    async def _compare(self, source: Disk) -> None:
        self._job.report.enter("compare", "comparing the result with the source")
        self._require_size()
        if not self._job.wants("compare"):
            return self._notes.add("compare", "skipped", "not among the requested actions")
        if not await self._qemu.compare(source, self._output, self._progress()):
            message = f"the {self._output.format} image differs from {source.path} and was thrown away"
            raise OperationFailed(ErrorCode.CONTENT_MISMATCH, message)
        return self._notes.add("compare", "applied", "the content is equal")

    def _require_size(self) -> None:
        """A format may round the disk's size up a little, but never down."""
        before, after = self._known_source.virtual_size, self._known_output.virtual_size
        if not before <= after <= before + _ROUNDING_BYTES:
            message = f"the result is a disk of {after} bytes, the source is one of {before}"
            raise OperationFailed(ErrorCode.CONTENT_MISMATCH, message)
        if after > before:
            self._warnings.append(f"the format rounds the disk up from {before} to {after} bytes")

    def _options(self) -> list[str]:
        """qemu-img's options for the output.

        `-W` lets it write out of order: never slower than the default in our measurements, and a quarter
        faster with compression.
        """
        options = ["-W"] if FORMATS[self._output.format].out_of_order else []
        if self._output.format == "qcow2" and self._compressed:
            options += ["-c", "-o", f"compression_type={self._parameters.compression_type}"]
        if self._output.format == "vmdk":
            options += ["-o", f"subformat={self._subformat}"]
        if self._output.format == "vhd":
            options += ["-o", "force_size=on"]
        return options

    @property
    def _compressed(self) -> bool:
        packed = self._output.format == "qcow2" and self._parameters.compress
        return packed or self._subformat == "streamOptimized"

    @property
    def _subformat(self) -> str | None:
        return (self._parameters.subformat or "monolithicSparse") if self._output.format == "vmdk" else None

    def _progress(self) -> OnFraction:
        total = self._known_source.virtual_size

        def advance(fraction: float) -> None:
            self._job.report.advance(fraction, bytes_done=int(fraction * total), bytes_total=total)

        return advance

    def _report(self, image: CheckedImage) -> Report:
        return Report(
            job_id=self._job.job_id,
            operation="convert",
            attempt=self._job.attempt,
            started_at=self._started_at,
            ended_at=dt.datetime.now(dt.UTC),
            spec=self._job.spec,
            actions=tuple(self._notes.lines),
            image={**_facts(self._known_source, image.path), "sha256": image.checksum, **image.container},
            output=_facts(self._known_output, self._target),
            warnings=tuple(self._warnings),
            tools=self._versions,
            commands=self._qemu.commands,
        )

    def _result(self, image: CheckedImage, kept: list[str]) -> OperationResult:
        stored = self._job.spec.artifacts.store_fixed_image
        tools = self._place.tools
        return OperationResult(
            outputs=Outputs(
                fixed_image=str(self._target) if stored else None,
                report=str(report_path(self._job.output_path, self._job.job_id)),
                logs=str(self._place.log.path),
                intermediates=tuple(kept),
            ),
            disk_read_bytes=tools.read_bytes,
            disk_write_bytes=tools.written_bytes,
            warnings=tuple(self._warnings),
            summary={
                "source_format": image.format,
                "output_format": self._output.format,
                "virtual_size": self._known_output.virtual_size,
                "output_bytes": self._output.path.stat().st_size,
                "actions": {each.action: each.outcome for each in self._notes.lines},
            },
        )

    @property
    def _known_source(self) -> ImageInfo:
        return _known(self._source_info)

    @property
    def _known_output(self) -> ImageInfo:
        return _known(self._output_info)


def _known(info: ImageInfo | None) -> ImageInfo:
    if info is None:
        raise ValueError("the image has not been probed yet")
    return info


def _facts(info: ImageInfo, path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = msgspec.to_builtins(info)
    return {"path": str(path), **facts}
