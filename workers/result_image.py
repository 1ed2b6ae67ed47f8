"""The image that an operation writes: made in the scratch directory, proven, and only then published."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import (
    BootRepairParameters,
    BootTestParameters,
    ConvertParameters,
    Firmware,
    RepairParameters,
    converted_path,
)
from workers.account import Account
from workers.boot.command import PROGRAM as EMULATOR
from workers.boot.proof import facts, named_files, prove_boot
from workers.checksum import digests
from workers.comparison import require_same_content
from workers.context import JobContext
from workers.conversion import (
    Compression,
    ConversionFacts,
    choose_comparison,
    choose_options,
    usable_cores,
)
from workers.formats import FORMATS
from workers.formats.header import Window
from workers.outputs import StagedFile, intermediate_path, report_path, sync_file
from workers.qemu import CheckResult, Disk, ImageInfo, OnFraction, QemuImg
from workers.scratch import made
from workers.workplace import Workplace
from workers.writeback import with_writeback

_ROUNDING_BYTES = 16 << 20
"""No format rounds the size of a disk up by more than this."""

_NAME = "output"
_EVIDENCE = ("console.log", "screen.png")


class ResultImage:
    """The result on its way. Only `staged` of a proven image may be published.

    `booted` is what a boot of it came to, if the job asks for one.
    """

    def __init__(self, job: JobContext, place: Workplace, qemu: QemuImg, account: Account) -> None:
        self._job = job
        self._place = place
        self._qemu = qemu
        self._account = account
        self._parameters: ConvertParameters | RepairParameters = job.parameters
        self.booted: dict[str, Any] = {}
        self.info: ImageInfo | None = None
        self.checksum: str | None = None
        self.disk = Disk(
            path=place.private.path / _NAME,
            inside=_NAME,
            format=self._parameters.output_format,
            made_here=True,
        )
        self.file = place.scratch / _NAME
        self.target = Path(converted_path(job.spec, self._parameters))

    @property
    def names(self) -> list[Path]:
        """Every name that the job is going to take."""
        output_path, job_id = self._job.output_path, self._job.job_id
        image = [self.target] if self._kept else []
        evidence = _EVIDENCE if self._parameters.boot_test else ()
        kept = [intermediate_path(output_path, job_id, each) for each in evidence]
        return [*image, report_path(output_path, job_id), *kept]

    @property
    def staged(self) -> StagedFile | None:
        """What is published; nothing for a job that only wants the proof."""
        if self._kept:
            return StagedFile(self.file, self.target)
        self._account.warnings.append("the image was proven and not kept, as store_fixed_image says")
        return None

    @property
    def compressed(self) -> bool:
        packed = self.disk.format == "qcow2" and self._parameters.compress
        return packed or self._subformat == "streamOptimized"

    async def write(self, source: Disk, known: ImageInfo) -> None:
        """Write the content of `source`, of which `known` is known, in the result's format."""
        choice = choose_options(self._facts(source, known))
        self._place.log.line(f"convert: {choice.reason}")
        options = [*choice.options, *self._format_options()]
        advance = self.progress(known.virtual_size)
        write = partial(self._qemu.convert, source, self.disk, options, advance)
        await (with_writeback(self.file, write) if self._kept else write())

    async def learn(self) -> None:
        """Read the written image's header, as `info` says from then on."""
        self.info, self._account.kept["output-info.json"] = await self._qemu.info(self.disk)

    async def sync(self) -> None:
        """Return when the image is on stable storage, if it is to be kept."""
        if self._kept:
            await sync_file(self.file)

    async def check(self) -> CheckResult | None:
        """Check the image's own bookkeeping; None where its format has none. Raises CONTENT_MISMATCH."""
        if not FORMATS[self.disk.format].checked:
            return None
        found = await self._qemu.check(self.disk)
        if found.verdict not in {"clean", "leaks"}:
            message = f"the result is {found.verdict}: {found.detail}"
            raise OperationFailed(ErrorCode.CONTENT_MISMATCH, message)
        return found

    def require_size(self, before: int) -> None:
        """A format may round the disk's size up a little, but never down. Raises CONTENT_MISMATCH."""
        after = self.known.virtual_size
        if not before <= after <= before + _ROUNDING_BYTES:
            message = f"the result is a disk of {after} bytes, the source is one of {before}"
            raise OperationFailed(ErrorCode.CONTENT_MISMATCH, message)
        if after > before:
            words = f"the format rounds the disk up from {before} to {after} bytes"
            self._account.warnings.append(words)

    async def require_same(self, source: Disk, known: ImageInfo, on_fraction: OnFraction) -> None:
        """Compare the whole content. Raises CONTENT_MISMATCH."""
        how = choose_comparison(self._facts(source, known))
        self._place.log.line(f"compare: {how.reason}")
        await require_same_content(self._qemu, source, self.disk, known.virtual_size, how, on_fraction)

    async def boot(self) -> None:
        """Boot the image, if the job asks for it. Raises BOOT_FAILED, with the evidence kept."""
        if not self._parameters.boot_test:
            return
        wanted = BootTestParameters(firmware=self._firmware)
        verdict = await prove_boot(self._job, self._place, self.disk, wanted)
        self._account.notes.add("boot_test", "applied", f"{verdict.stage} after {verdict.seconds} s")
        self._account.tools[EMULATOR] = verdict.qemu_version
        self._account.evidence += named_files(verdict).values()
        self.booted = {"boot": facts(verdict)}

    @property
    def known(self) -> ImageInfo:
        """What `learn` has found."""
        if self.info is None:
            raise ValueError("the result was not read yet")
        return self.info

    async def take_checksum(self) -> None:
        """Read the finished image once more for its SHA-256, if the job asks for it."""
        if not self._parameters.output_checksum:
            return
        with made(self.file) as opened:
            size = os.fstat(opened.fileno()).st_size
            found = await digests(opened.fileno(), Window(0, size), ["sha256"], self._on_checksum)
        self.checksum = found["sha256"]

    def _on_checksum(self, done: int, total: int) -> None:
        words = "taking the result's checksum"
        self._job.report.advance(done / max(total, 1), words, bytes_done=done, bytes_total=total)

    def facts(self) -> dict[str, Any]:
        """What the report says of the image; sizes are in bytes."""
        described: dict[str, Any] = msgspec.to_builtins(self.known)
        known = {"sha256": self.checksum} if self.checksum else {}
        return {"path": str(self.target), **described, **known, **self.booted}

    def progress(self, size: int) -> OnFraction:
        """Tells the job how far a tool is with a disk of `size` bytes."""

        def advance(fraction: float) -> None:
            self._job.report.advance(fraction, bytes_done=int(fraction * size), bytes_total=size)

        return advance

    def _facts(self, source: Disk, known: ImageInfo) -> ConversionFacts:
        return ConversionFacts(
            source=source.format,
            packed=known.packed,
            divisible=source.divisible,
            allocated_bytes=min(known.actual_size, known.virtual_size),
            target=self.disk.format,
            compression=self._compression_type if self.compressed else None,
            cores=usable_cores(),
        )

    def _format_options(self) -> list[str]:
        """qemu-img's options for what the job wants the result to be."""
        options = []
        if self.disk.format == "qcow2" and self.compressed:
            options += ["-c", "-o", f"compression_type={self._compression_type}"]
        if self._subformat is not None:
            options += ["-o", f"subformat={self._subformat}"]
        if self.disk.format == "vhd":
            options += ["-o", "force_size=on"]
        return options

    @property
    def _kept(self) -> bool:
        return self._job.spec.artifacts.store_fixed_image

    @property
    def _firmware(self) -> Firmware:
        return self._parameters.firmware if isinstance(self._parameters, BootRepairParameters) else "auto"

    @property
    def _compression_type(self) -> Compression:
        return (
            self._parameters.compression_type if isinstance(self._parameters, ConvertParameters) else "zlib"
        )

    @property
    def _subformat(self) -> str | None:
        if self.disk.format != "vmdk":
            return None
        asked = self._parameters.subformat if isinstance(self._parameters, ConvertParameters) else None
        return asked or "monolithicSparse"
