"""convert: the image's content in another format, proven to be the same content."""

from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import ConvertParameters
from workers.account import Account
from workers.context import JobContext, OperationResult
from workers.image import CheckedImage, open_job_image
from workers.outputs import free_bytes, require_free
from workers.qemu import PROGRAM, CheckResult, Disk, ImageInfo, QemuImg
from workers.result_image import ResultImage
from workers.side_by_side import side_by_side
from workers.workplace import Workplace

_LIKE_QCOW2 = frozenset({"qcow2", "raw", "vmdk"})
"""Formats that leave out what is not allocated in pieces of at most 64 KiB, as qcow2 does. Those with
blocks of a MiB and more may need as much as the whole disk."""


class Convert:
    """Converts one image. The source is only read; the result gets its name when it has been proven."""

    async def run(self, job: JobContext) -> OperationResult:
        """Convert, check, compare, boot if asked, publish.

        Raises OperationFailed with the code of what went wrong.
        """
        async with job.workplace() as place:
            work = _Conversion(job, place)
            require_free(place.output, *work.result.names)
            job.report.enter("probe", "reading the image's header")
            async with work.open_image() as image:
                image.require_sound()
                await work.probe(image)
                await work.convert(image.disk)
                await work.prove(image.disk)
                image.require_unchanged()
                await work.result.boot()
                image.require_unchanged()
            return await work.publish(image)


class _Conversion:
    """The state of one conversion: what is known about both images, and what was done."""

    def __init__(self, job: JobContext, place: Workplace) -> None:
        self._job = job
        self._place = place
        self._parameters: ConvertParameters = job.parameters
        self._qemu = QemuImg(place.tools)
        self._account = Account(job, place)
        self._source_info: ImageInfo | None = None
        self._found: CheckResult | None = None
        self._checked = False
        self.result = ResultImage(job, place, self._qemu, self._account)

    def open_image(self) -> AbstractAsyncContextManager[CheckedImage]:
        return open_job_image(self._job, self._place, self._account.on_checksum)

    async def probe(self, image: CheckedImage) -> None:
        """Learn the source's size, and warn if the result may not fit."""
        (self._source_info, words), _ = await side_by_side(
            partial(image.examine, self._qemu), self._learn_version
        )
        self._account.kept["source-info.json"] = words
        self._account.warnings += image.warnings
        if image.format == "qcow2":
            await self._check_source(image.disk)
        await self._look_for_space(image.disk)

    async def convert(self, source: Disk) -> None:
        """Write the output into the scratch directory."""
        target = self.result.disk.format
        self._job.report.enter("convert", f"writing {target}")
        await self.result.write(source, self._known_source)
        self._account.notes.add("convert", "applied", f"{source.format} to {target}")

    async def prove(self, source: Disk) -> None:
        """Check and compare at once, while the output is on its way to stable storage."""
        self._job.report.enter("check")
        compare = partial(self._compare, source)
        await side_by_side(self.result.sync, self.result.learn, self._check_output, compare)
        self.result.require_size(self._known_source.virtual_size)
        self._note_proof()

    async def publish(self, image: CheckedImage) -> OperationResult:
        """Give the results their final names; the last thing that happens."""
        self._job.report.enter("publish", "making the results durable")
        await self.result.take_checksum()
        source: dict[str, Any] = msgspec.to_builtins(self._known_source)
        return await self._account.publish(
            image={
                "path": str(image.path),
                "file_bytes": image.size,
                **source,
                "sha256": image.checksum,
                **image.container,
            },
            output=self.result.facts(),
            commands=self._qemu.commands,
            fixed_image=self.result.staged,
            summary={
                "source_format": image.format,
                "output_format": self.result.disk.format,
                "virtual_size": self.result.known.virtual_size,
                "output_bytes": self.result.file.stat().st_size,
                "actions": self._account.outcomes,
                **self.result.booted,
            },
        )

    async def _check_source(self, source: Disk) -> None:
        """Look for a missing end, which qcow2 alone hides from its header.

        The headers of the other formats have been held against the file's size.
        """
        found = await self._qemu.check(source)
        if found.verdict == "corrupt":
            raise OperationFailed(ErrorCode.IMAGE_CORRUPT, f"{source.path}: {found.detail}")
        if found.verdict == "leaks":
            self._account.warnings.append("the source has leaked clusters, which are harmless")

    async def _look_for_space(self, source: Disk) -> None:
        """Warn if the result may not fit, and refuse nothing, because nothing sound can be said.

        What the source allocates bounds the result from above only: zeros that it stores are not written
        again (20 MiB of them measure as 20 MiB and become 200 KiB), and telling them from content takes
        reading all of it, which is what the conversion does. Nor is the free space a bound: others may
        make room meanwhile, and a filesystem may compress what it is given.
        """
        free = free_bytes(self._place.scratch)
        needed = self._known_source.virtual_size
        if free >= needed or self.result.compressed:
            return
        if self.result.disk.format in _LIKE_QCOW2:
            needed = await self._qemu.measure(source, "qcow2") or needed
        if free < needed:
            self._account.warnings.append(f"the result may need {needed} bytes and {free} are free")
            self._place.log.line(self._account.warnings[-1])

    async def _learn_version(self) -> None:
        self._account.tools[PROGRAM] = await self._qemu.version()

    async def _check_output(self) -> None:
        if self._job.wants("check"):
            self._found = await self.result.check()
        self._job.report.enter("compare", "comparing the result with the source")
        self._checked = True

    async def _compare(self, source: Disk) -> None:
        if not self._job.wants("compare"):
            return
        advance = self.result.progress(self._known_source.virtual_size)

        def after_the_check(fraction: float) -> None:
            if self._checked:
                advance(fraction)

        await self.result.require_same(source, self._known_source, after_the_check)

    def _note_proof(self) -> None:
        """In the order of the actions, whichever was done first."""
        left_out = "not among the requested actions"
        notes, found = self._account.notes, self._found
        if not self._job.wants("check"):
            notes.add("check", "skipped", left_out)
        elif found is None:
            notes.add("check", "not needed", f"{self.result.disk.format} has nothing to check")
        else:
            self._account.kept["check.txt"] = f"{found.verdict}: {found.detail}\n".encode()
            notes.add("check", "applied", found.verdict)
        if self._job.wants("compare"):
            notes.add("compare", "applied", "the content is equal")
        else:
            notes.add("compare", "skipped", left_out)

    @property
    def _known_source(self) -> ImageInfo:
        if self._source_info is None:
            raise ValueError("the image has not been probed yet")
        return self._source_info
