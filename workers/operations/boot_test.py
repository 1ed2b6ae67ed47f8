"""boot_test: the disk boots in a virtual machine, seen on its console. The image is only read."""

from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from subjects.builtin import BootTestParameters
from workers.account import Account
from workers.boot.command import PROGRAM as EMULATOR
from workers.boot.proof import facts, named_files, require_boots, try_boot
from workers.boot.request import BootVerdict
from workers.context import JobContext, OperationResult
from workers.image import CheckedImage, open_job_image
from workers.outputs import intermediate_path, report_path, require_free
from workers.qemu import PROGRAM, ImageInfo, QemuImg
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
            async with work.open_image() as image:
                image.require_sound()
                info = await work.probe(image)
                verdict = await work.boot(image)
                image.require_unchanged()
            await require_boots(job, place, verdict)
            return await work.publish(image, info, verdict)


class _BootTest:
    """The state of one test."""

    def __init__(self, job: JobContext, place: Workplace) -> None:
        self._job = job
        self._place = place
        self._parameters: BootTestParameters = job.parameters
        self._qemu = QemuImg(place.tools)
        self._account = Account(job, place)

    def require_free_names(self) -> None:
        output_path, job_id = self._job.output_path, self._job.job_id
        kept = [intermediate_path(output_path, job_id, each) for each in _PUBLISHED]
        require_free(self._place.output, report_path(output_path, job_id), *kept)

    def open_image(self) -> AbstractAsyncContextManager[CheckedImage]:
        return open_job_image(self._job, self._place, self._account.on_checksum)

    async def probe(self, image: CheckedImage) -> ImageInfo:
        info, _ = await image.examine(self._qemu)
        self._account.warnings += image.warnings
        self._account.tools[PROGRAM] = await self._qemu.version()
        return info

    async def boot(self, image: CheckedImage) -> BootVerdict:
        verdict = await try_boot(self._job, self._place, image.disk, self._parameters)
        self._account.tools[EMULATOR] = verdict.qemu_version
        self._account.notes.add("boot", "applied", f"{verdict.stage} after {verdict.seconds} s")
        return verdict

    async def publish(self, image: CheckedImage, info: ImageInfo, verdict: BootVerdict) -> OperationResult:
        """Publish the report with the evidence; the last thing that happens."""
        self._job.report.enter("report", "writing the report")
        self._account.evidence += named_files(verdict).values()
        described: dict[str, Any] = msgspec.to_builtins(info)
        return await self._account.publish(
            image={
                "path": str(image.path),
                "file_bytes": image.size,
                **described,
                "sha256": image.checksum,
                **image.container,
                "boot": {**facts(verdict), "console_tail": list(verdict.tail)},
            },
            summary={name: value for name, value in facts(verdict).items() if name in _SUMMARY},
            commands=self._qemu.commands,
        )
