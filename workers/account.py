"""An attempt's account of itself: what it found and did so far, and in the end what it publishes."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subjects.manifest import DiskFacts
from subjects.result import Outputs
from workers.context import JobContext, OperationResult, Provenance
from workers.joblog import encodable
from workers.outputs import StagedFile, intermediate_path, output_errors, report_path
from workers.report import ActionNotes, Report, write_report
from workers.workplace import Workplace, stage_intermediates


class Account:
    """One attempt's notes. Each operation adds to them; `publish` makes the report of them.

    `tools` are versions by program, `kept` contents that a job which keeps its intermediates gets, and
    `evidence` files of the scratch directory that are always published beside the report.
    """

    def __init__(self, job: JobContext, place: Workplace) -> None:
        self.notes = ActionNotes(place.log)
        self.warnings: list[str] = []
        self.tools: dict[str, str] = {}
        self.kept: dict[str, bytes] = {}
        self.evidence: list[Path] = []
        self._job = job
        self._place = place
        self._started_at = dt.datetime.now(dt.UTC)

    def on_checksum(self, done: int, total: int) -> None:
        """Say how far the checksum of the source is."""
        words = "verifying the image's checksum"
        self._job.report.advance(done / total, words, bytes_done=done, bytes_total=total)

    @property
    def outcomes(self) -> dict[str, str]:
        """What became of each action, in a word."""
        return {each.action: each.outcome for each in self.notes.lines}

    async def publish(
        self,
        *,
        image: dict[str, Any],
        summary: dict[str, Any],
        output: dict[str, Any] | None = None,
        commands: Sequence[str] = (),
        fixed_image: StagedFile | None = None,
    ) -> OperationResult:
        """Write the report, and give everything its final name; the last thing that happens."""
        report = StagedFile(
            self._place.scratch / "report.json", report_path(self._job.output_path, self._job.job_id)
        )
        write_report(self._report(image, output, commands), report.source)
        intermediates = self._intermediates()
        images = [fixed_image] if fixed_image else []
        outputs = Outputs(
            fixed_image=str(fixed_image.target) if fixed_image else None,
            report=str(report.target),
            logs=str(self._place.log.path),
            intermediates=tuple(str(each.target) for each in intermediates),
        )
        tools = self._place.tools
        result = OperationResult(
            outputs=outputs,
            disk_read_bytes=tools.read_bytes,
            disk_write_bytes=tools.written_bytes,
            warnings=tuple(encodable(self.warnings)),
            summary=encodable(summary),
            provenance=self._provenance(image, output, fixed_image),
        )
        return await self._job.publish([*images, report, *intermediates], result)

    def _provenance(
        self, image: dict[str, Any], output: dict[str, Any] | None, fixed_image: StagedFile | None
    ) -> Provenance:
        made = []
        if output is not None and fixed_image is not None:
            with output_errors(fixed_image.target):
                made.append(_disk({**output, "file_bytes": fixed_image.source.stat().st_size}))
        return Provenance(inputs=(_disk(image),), outputs=tuple(made), tools=dict(self.tools))

    def _intermediates(self) -> list[StagedFile]:
        output_path, job_id = self._job.output_path, self._job.job_id
        kept = self.kept if self._job.spec.artifacts.keep_intermediates else {}
        evidence = [
            StagedFile(each, intermediate_path(output_path, job_id, each.name)) for each in self.evidence
        ]
        return [*stage_intermediates(self._place, kept, output_path, job_id), *evidence]

    def _report(
        self, image: dict[str, Any], output: dict[str, Any] | None, commands: Sequence[str]
    ) -> Report:
        return Report(
            job_id=self._job.job_id,
            operation=self._job.spec.operation,
            attempt=self._job.attempt,
            started_at=self._started_at,
            ended_at=dt.datetime.now(dt.UTC),
            spec=self._job.spec,
            actions=tuple(self.notes.lines),
            image=image,
            output=output,
            warnings=tuple(self.warnings),
            tools=self.tools,
            commands=tuple(commands),
        )


def _disk(facts: dict[str, Any]) -> DiskFacts:
    """What the report says of a disk, as far as a manifest tells it. qemu-img's names have hyphens."""
    return DiskFacts(
        path=encodable(facts["path"]),
        format=facts.get("format"),
        file_bytes=facts.get("file_bytes"),
        virtual_size=facts.get("virtual_size", facts.get("virtual-size")),
        sha256=facts.get("sha256"),
    )
