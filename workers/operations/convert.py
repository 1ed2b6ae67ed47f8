"""convert: the image's content in another format, proven to be the same content."""

from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import ConvertParameters
from workers.account import Account
from workers.context import JobContext, OperationResult
from workers.image import CheckedImage, open_job_image
from workers.outputs import free_bytes, require_free
from workers.qemu import PROGRAM, Disk, ImageInfo, QemuImg
from workers.result_image import ResultImage
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
        self._output_info: ImageInfo | None = None
        self.result = ResultImage(job, place, self._qemu, self._account)

    def open_image(self) -> AbstractAsyncContextManager[CheckedImage]:
        return open_job_image(self._job, self._place, self._account.on_checksum)

    async def probe(self, image: CheckedImage) -> None:
        """Learn the source's size, and warn if the result may not fit."""
        self._source_info, self._account.kept["source-info.json"] = await image.examine(self._qemu)
        self._account.warnings += image.warnings
        if image.format == "qcow2":
            await self._check_source(image.disk)
        await self._look_for_space(image.disk)

    async def convert(self, source: Disk) -> None:
        """Write the output into the scratch directory."""
        target = self.result.disk.format
        self._job.report.enter("convert", f"writing {target}")
        self._output_info = await self.result.write(source, self._known_source.virtual_size)
        self._account.notes.add("convert", "applied", f"{source.format} to {target}")

    async def prove(self, source: Disk) -> None:
        """Check and compare while the output is on its way to stable storage."""
        failures: list[OperationFailed] = []
        async with anyio.create_task_group() as group:
            group.start_soon(self._collect, failures, self.result.sync())
            group.start_soon(self._collect, failures, self._learn_version())
            await self._collect(failures, self._check_and_compare(source))
        for failure in failures:
            raise failure

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
            output=self.result.facts(self._known_output),
            commands=self._qemu.commands,
            fixed_image=self.result.staged,
            summary={
                "source_format": image.format,
                "output_format": self.result.disk.format,
                "virtual_size": self._known_output.virtual_size,
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

    async def _collect(self, failures: list[OperationFailed], step: Coroutine[Any, Any, None]) -> None:
        """Await one step; its failure must not leave the task group as a group of errors."""
        try:
            await step
        except OperationFailed as failure:
            failures.append(failure)

    async def _learn_version(self) -> None:
        self._account.tools[PROGRAM] = await self._qemu.version()

    async def _check_and_compare(self, source: Disk) -> None:
        await self._check_output()
        await self._compare(source)

    async def _check_output(self) -> None:
        self._job.report.enter("check")
        if not self._job.wants("check"):
            return self._account.notes.add("check", "skipped", "not among the requested actions")
        found = await self.result.check()
        if found is None:
            words = f"{self.result.disk.format} has nothing to check"
            return self._account.notes.add("check", "not needed", words)
        self._account.kept["check.txt"] = f"{found.verdict}: {found.detail}\n".encode()
        return self._account.notes.add("check", "applied", found.verdict)

    async def _compare(self, source: Disk) -> None:
        self._job.report.enter("compare", "comparing the result with the source")
        size = self._known_source.virtual_size
        self.result.require_size(size, self._known_output.virtual_size)
        if not self._job.wants("compare"):
            return self._account.notes.add("compare", "skipped", "not among the requested actions")
        await self.result.require_same(source, source.path, size)
        return self._account.notes.add("compare", "applied", "the content is equal")

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
