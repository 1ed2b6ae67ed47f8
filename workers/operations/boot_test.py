"""boot_test: the disk boots in a virtual machine, seen on its console. The image is only read."""

import datetime as dt
from typing import Any

import msgspec

from subjects.builtin import BootTestParameters
from subjects.result import Outputs
from workers.boot.command import PROGRAM as EMULATOR
from workers.boot.proof import facts, named_files, require_boots, try_boot
from workers.boot.request import BootVerdict
from workers.context import JobContext, OperationResult
from workers.image import CheckedImage, open_image
from workers.outputs import StagedFile, intermediate_path, report_path, require_free
from workers.qemu import PROGRAM, ImageInfo, QemuImg
from workers.report import ActionNotes, Report, write_report
from workers.workplace import Workplace

_PUBLISHED = ("console.log", "screen.png")
_SUMMARY = ("boots", "stage", "seconds", "firmware", "accelerator")


class BootTest:
    """Boots one image. A guest that comes up is a result; one that does not is a failure with evidence."""

    async def run(self, job: JobContext) -> OperationResult:
        """Check the image, boot it, publish the report, the console's log and a screenshot.

        Raises OperationFailed with the code of what is wrong with the image, or BOOT_FAILED.
        """
        async with job.workplace() as place:
            work = _BootTest(job, place)
            work.require_free_names()
            job.report.enter("probe", "reading the image's header")
            async with open_image(job.spec.image, work.on_checksum) as image:
                image.require_sound()
                info = await work.probe(image)
                verdict = await work.boot(image)
                image.require_unchanged()
            await require_boots(job, verdict)
            return await work.publish(image, info, verdict)


class _BootTest:
    """The state of one test."""

    def __init__(self, job: JobContext, place: Workplace) -> None:
        self._job = job
        self._place = place
        self._parameters: BootTestParameters = job.parameters
        self._qemu = QemuImg(place.tools)
        self._started_at = dt.datetime.now(dt.UTC)
        self._notes = ActionNotes(place.log)
        self._versions: dict[str, str] = {}

    def on_checksum(self, done: int, total: int) -> None:
        words = "verifying the image's checksum"
        self._job.report.advance(done / total, words, bytes_done=done, bytes_total=total)

    def require_free_names(self) -> None:
        output_path, job_id = self._job.output_path, self._job.job_id
        kept = [intermediate_path(output_path, job_id, each) for each in _PUBLISHED]
        require_free(report_path(output_path, job_id), *kept)

    async def probe(self, image: CheckedImage) -> ImageInfo:
        info, _ = await image.examine(self._qemu)
        self._versions[PROGRAM] = await self._qemu.version()
        return info

    async def boot(self, image: CheckedImage) -> BootVerdict:
        verdict = await try_boot(self._job, self._place, image.disk, self._parameters)
        self._versions[EMULATOR] = verdict.qemu_version
        self._notes.add("boot", "applied", f"{verdict.stage} after {verdict.seconds} s")
        return verdict

    async def publish(self, image: CheckedImage, info: ImageInfo, verdict: BootVerdict) -> OperationResult:
        """Publish the report with the evidence; the last thing that happens."""
        self._job.report.enter("report", "writing the report")
        output_path, job_id = self._job.output_path, self._job.job_id
        report = self._place.scratch / "report.json"
        write_report(self._report(image, info, verdict), report)
        files = named_files(verdict).values()
        kept = [StagedFile(each, intermediate_path(output_path, job_id, each.name)) for each in files]
        target = report_path(output_path, job_id)
        result = OperationResult(
            outputs=Outputs(
                report=str(target),
                logs=str(self._place.log.path),
                intermediates=tuple(str(each.target) for each in kept),
            ),
            disk_read_bytes=self._place.tools.read_bytes,
            disk_write_bytes=self._place.tools.written_bytes,
            warnings=tuple(image.warnings),
            summary={name: value for name, value in facts(verdict).items() if name in _SUMMARY},
        )
        return await self._job.publish([StagedFile(report, target), *kept], result)

    def _report(self, image: CheckedImage, info: ImageInfo, verdict: BootVerdict) -> Report:
        described: dict[str, Any] = msgspec.to_builtins(info)
        return Report(
            job_id=self._job.job_id,
            operation="boot_test",
            attempt=self._job.attempt,
            started_at=self._started_at,
            ended_at=dt.datetime.now(dt.UTC),
            spec=self._job.spec,
            actions=tuple(self._notes.lines),
            image={
                "path": str(image.path),
                **described,
                "sha256": image.checksum,
                "boot": {**facts(verdict), "console_tail": list(verdict.tail)},
            },
            warnings=tuple(image.warnings),
            tools=self._versions,
            commands=self._qemu.commands,
        )
