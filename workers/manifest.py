"""The manifest of one attempt: what it was made of and what it made, for an auditor."""

import datetime as dt
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from h2kbus import __version__
from h2kbus.redaction import Redactor
from subjects.manifest import DiskFacts, KeptObject, Manifest
from subjects.record import JobRecord
from subjects.spec import JobSpec
from subjects.states import State
from workers.complete import next_record
from workers.context import Provenance
from workers.execute import Outcome
from workers.joblog import encodable
from workers.lease import HeldLease

MOST_COMMAND_CHARS: Final = 1 << 20
"""All command lines together; how many more there are is said."""


def manifest_of(lease: HeldLease, outcome: Outcome, artifacts: Sequence[KeptObject]) -> Manifest | None:
    """What to keep of the attempt; None when its job is in other hands, so that it comes to nothing."""
    record, now = lease.entry.record, dt.datetime.now(dt.UTC)
    following = next_record(record, outcome, now)
    if following is None or record.spec is None:
        return None
    known = outcome.result.provenance if outcome.result else _named(record.spec)
    return Manifest(
        job_id=record.job_id,
        attempt=record.attempt,
        token=lease.terms.token,
        operation=record.spec.operation,
        spec=without_secrets(record.spec),
        submitted_by=record.submitted_by,
        worker_id=record.worker_id or "",
        host=socket.gethostname(),
        h2kbus_version=__version__,
        submitted_at=record.created_at,
        started_at=_started(record),
        ended_at=now,
        state=following.state,
        error_code=outcome.error.code if outcome.error else None,
        tools=known.tools,
        commands=_commands(lease),
        inputs=known.inputs,
        outputs=known.outputs,
        artifacts=tuple(artifacts),
    )


def without_secrets(spec: JobSpec) -> JobSpec:
    """The job with what is secret in its parameters replaced; its signature is not over this."""
    redactor = Redactor.of(spec.parameters)
    audit = msgspec.structs.replace(spec.audit, tags=redactor.value(spec.audit.tags))
    return msgspec.structs.replace(spec, parameters=redactor.value(spec.parameters), audit=audit)


def _named(spec: JobSpec) -> Provenance:
    """What a job says of its image, of which an attempt that failed may have seen nothing."""
    image = spec.image
    return Provenance(inputs=(DiskFacts(path=image.path, format=image.format, file_bytes=image.size_bytes),))


def _started(record: JobRecord) -> dt.datetime:
    taken = [each.at for each in record.transitions if each.to is State.ASSIGNED]
    return taken[-1] if taken else record.updated_at


def _commands(lease: HeldLease) -> tuple[str, ...]:
    ran = lease.tools.commands if lease.tools else []
    kept: list[str] = []
    room = MOST_COMMAND_CHARS
    for each in ran:
        room -= len(each)
        if room < 0:
            kept.append(f"... and {len(ran) - len(kept)} more, which the log has")
            break
        kept.append(encodable(each))
    return tuple(kept)
