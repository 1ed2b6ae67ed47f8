"""Run one attempt of one job and say what it came to. Reporting it is `complete`'s business."""

import contextlib
import logging
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec

from h2kbus.errors import AttemptStopped, ErrorCode, H2KBusError, InvalidMessage, OperationFailed
from h2kbus.redaction import PLAIN, Redactor
from subjects.catalog import OperationCatalog
from subjects.fleet import CONFINED
from subjects.lifecycle import is_granted, stop_cause
from subjects.operations import OperationDeclaration, parameters_of, selected_actions
from subjects.record import JobRecord
from subjects.result import JobError, Metrics
from subjects.spec import JobSpec
from subjects.states import State
from workers import bounds
from workers.context import JobContext, OperationResult
from workers.joblog import encodable
from workers.lease import HeldLease
from workers.operations import load_runner
from workers.outputs import StagedFile
from workers.progress import ProgressReport
from workers.publication import publish, recover
from workers.site import ANYWHERE, Destination, Site
from workers.workplace import Workplace, open_workplace

log = logging.getLogger("h2kbus.worker")

_STACK_CHARS: Final = 8192


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt came to: a result, an error, or the cause of its being stopped."""

    result: OperationResult | None = None
    error: JobError | None = None
    stopped: bool = False
    metrics: Metrics = Metrics()
    log_file: Path | None = None
    warnings: tuple[str, ...] = ()
    manifest_sha256: str | None = None


class Means(msgspec.Struct, frozen=True):
    """What a worker has for its jobs: operations, what it was seen to do, and what they may reach."""

    catalog: OperationCatalog
    capabilities: frozenset[str] = frozenset()
    site: Site = ANYWHERE


async def execute(lease: HeldLease, means: Means) -> Outcome:
    """Run the attempt under its lease, which also ends it in time. Whatever happens is in what it returns."""
    began = time.monotonic()
    record = lease.entry.record
    result, error = None, None
    with lease.scope:
        try:
            result = await _run(lease, record, means)
        except AttemptStopped as stop:
            error = job_error(stop, lease)
        except H2KBusError as failure:
            error = job_error(failure, lease)
        except Exception as defect:
            log.exception("job %s met a defect", record.job_id)
            error = _defect(defect, lease)
    if lease.cause is not None and result is None:
        error = job_error(lease.cause, lease)
    return Outcome(
        result=result,
        error=error,
        stopped=lease.cause is not None,
        metrics=_metrics(lease, result, time.monotonic() - began),
        log_file=lease.log_file,
    )


async def _run(lease: HeldLease, record: JobRecord, means: Means) -> OperationResult:
    if has_history(record):
        destination = means.site.destination(_spec_of(record).artifacts.output_path)
        await _settle_earlier_attempts(lease, record, destination)
    if lease.publication is not None:
        return lease.publication.result
    declaration = means.catalog.declaration_of(_spec_of(record))
    lease.report = _progress_of(record, declaration)
    try:
        return await load_runner(declaration)().run(_context(lease, record, declaration, means))
    finally:
        lease.report.finish()


def _progress_of(record: JobRecord, declaration: OperationDeclaration) -> ProgressReport:
    return ProgressReport(declaration.phases_with(_spec_of(record).parameters))


def has_history(record: JobRecord) -> bool:
    """Whether an earlier attempt may have left something."""
    return record.publishing or any(each.to is State.RETRYING for each in record.transitions)


async def _settle_earlier_attempts(lease: HeldLease, record: JobRecord, destination: Destination) -> None:
    """Adopt what a lost attempt has published, or clear it away; then see whether this one may execute."""
    with anyio.CancelScope(shield=True):
        lease.publication = await recover(destination, record.job_id, before=lease.terms.token)
    if lease.publication is not None:
        return
    cause = stop_cause(record)
    if cause is not None:
        lease.stop(cause.code, cause.message)
        raise AttemptStopped(cause.code, cause.message)
    if not is_granted(record):
        last = record.errors[-1] if record.errors else None
        raise OperationFailed(
            last.code if last else ErrorCode.WORKER_LOST, last.message if last else "the last worker was lost"
        )


class _Files:
    """What an attempt does with files: it works in a place of its own, and publishes what it has made."""

    def __init__(self, lease: HeldLease, spec: JobSpec, means: Means) -> None:
        self._lease = lease
        self._spec = spec
        self._means = means
        self._place: Workplace | None = None

    @contextlib.asynccontextmanager
    async def workplace(self) -> AsyncIterator[Workplace]:
        lease, record = self._lease, self._lease.entry.record
        async with open_workplace(
            self._destination,
            record.job_id,
            lease.terms,
            lambda: lease.publication is not None,
            confined=CONFINED in self._means.capabilities,
            redactor=Redactor.of(self._spec.parameters),
        ) as place:
            if self._place is None:
                lease.log_from = place.log.began
            self._place = place
            lease.log_file = place.log.path
            lease.tools = place.tools
            place.log.line(f"attempt {record.attempt} of {self._spec.operation} on {record.worker_id}")
            yield place

    async def publish(self, files: Sequence[StagedFile], result: OperationResult) -> OperationResult:
        lease, place = self._lease, self._place
        if place is None:
            raise RuntimeError("an operation publishes inside of its workplace")
        lease.publication = await publish(
            self._destination, place.output, place.private, files, result, lease.guard
        )
        return result

    @property
    def _destination(self) -> Destination:
        return self._means.site.destination(self._spec.artifacts.output_path)


def _context(
    lease: HeldLease, record: JobRecord, declaration: OperationDeclaration, means: Means
) -> JobContext:
    spec = _spec_of(record)
    files = _Files(lease, spec, means)
    return JobContext(
        job_id=record.job_id,
        attempt=record.attempt,
        token=lease.terms.token,
        spec=spec,
        parameters=parameters_of(declaration, spec.parameters),
        actions=selected_actions(declaration, spec.requested_actions),
        capabilities=means.capabilities,
        site=means.site,
        report=lease.report or _progress_of(record, declaration),
        workplace=files.workplace,
        publish=files.publish,
    )


def _spec_of(record: JobRecord) -> JobSpec:
    if record.spec is None:
        raise InvalidMessage("the job has no specification", "$.spec")
    return record.spec


def job_error(error: H2KBusError, lease: HeldLease) -> JobError:
    """An expected failure, as it stands in the job's result: it may quote a tool's last words."""
    redactor = _redactor(lease)
    return JobError(
        code=error.error_code,
        message=bounds.words(str(error), redactor),
        phase=_phase(lease),
        details=bounds.facts(error.details, redactor),
    )


def _redactor(lease: HeldLease) -> Redactor:
    spec = lease.entry.record.spec
    return Redactor.of(spec.parameters) if spec else PLAIN


def _defect(error: Exception, lease: HeldLease) -> JobError:
    trace, redactor = "".join(traceback.format_exception(error)), _redactor(lease)
    return JobError(
        code=ErrorCode.INTERNAL,
        message=bounds.words(f"{type(error).__name__}: {error}", redactor),
        phase=_phase(lease),
        stack_trace=encodable(redactor.text(trace[-_STACK_CHARS:])),
    )


def _phase(lease: HeldLease) -> str | None:
    return lease.report.latest.phase if lease.report and lease.report.latest else None


def _metrics(lease: HeldLease, result: OperationResult | None, seconds: float) -> Metrics:
    return Metrics(
        execution_seconds=round(seconds, 4),
        phase_seconds=lease.report.phase_seconds if lease.report else {},
        disk_read_bytes=result.disk_read_bytes if result else 0,
        disk_write_bytes=result.disk_write_bytes if result else 0,
    )
