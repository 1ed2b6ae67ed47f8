"""A boot as a step of a job: the proof that a disk comes up, or the job's failure with its evidence."""

from pathlib import Path
from typing import Any, Final

from h2kbus.errors import ErrorCode, OperationFailed
from subjects.builtin import BootTestParameters
from workers.boot.machine import boot
from workers.boot.request import BootRequest, BootVerdict
from workers.context import JobContext
from workers.outputs import StagedFile, evidence_path, keep_evidence
from workers.qemu import Disk
from workers.workplace import Workplace

DEFAULTS: Final = BootTestParameters()


async def prove_boot(
    job: JobContext, place: Workplace, disk: Disk, wanted: BootTestParameters = DEFAULTS
) -> BootVerdict:
    """Boot the disk in the job's phase `boot`, and return only if it comes up.

    Raises BOOT_FAILED, with the console's log and a screenshot kept beside the job's log, and what
    `boot` raises.
    """
    verdict = await try_boot(job, place, disk, wanted)
    await require_boots(job, place, verdict)
    return verdict


async def try_boot(
    job: JobContext, place: Workplace, disk: Disk, wanted: BootTestParameters = DEFAULTS
) -> BootVerdict:
    """Boot the disk in the job's phase `boot`, and say how far it came. Raises what `boot` raises."""
    request = BootRequest.of(disk, wanted, job.capabilities)
    job.report.enter("boot", "starting a virtual machine")
    verdict = await boot(place, request, job.report.advance)
    words = "boots" if verdict.boots else "does not boot"
    place.log.line(f"the disk {words}: {verdict.stage} after {verdict.seconds} s: {verdict.detail}")
    return verdict


async def require_boots(job: JobContext, place: Workplace, verdict: BootVerdict) -> None:
    """Raise BOOT_FAILED for a disk that does not come up, after keeping the evidence."""
    if verdict.boots:
        return
    details = facts(verdict) | await _evidence(job, place, verdict)
    message = f"the disk does not boot ({verdict.stage}): {verdict.detail}"
    raise OperationFailed(ErrorCode.BOOT_FAILED, message, **details)


def facts(verdict: BootVerdict) -> dict[str, Any]:
    """The verdict without its files, as it stands in results and reports."""
    return {
        "boots": verdict.boots,
        "stage": verdict.stage,
        "detail": verdict.detail,
        "seconds": verdict.seconds,
        "firmware": verdict.firmware,
        "accelerator": verdict.accelerator,
    }


def named_files(verdict: BootVerdict) -> dict[str, Path]:
    """What the test left in the scratch directory, by what it is."""
    found = {"console": verdict.console, "screenshot": verdict.screenshot}
    return {kind: path for kind, path in found.items() if path is not None}


async def _evidence(job: JobContext, place: Workplace, verdict: BootVerdict) -> dict[str, Any]:
    targets = {
        kind: StagedFile(path, evidence_path(job.output_path, job.job_id, job.attempt, path.name))
        for kind, path in named_files(verdict).items()
    }
    kept = await keep_evidence(place.output, tuple(targets.values()))
    paths = {kind: str(file.target) if file.target in kept else None for kind, file in targets.items()}
    return {**paths, "console_tail": list(verdict.tail)}
