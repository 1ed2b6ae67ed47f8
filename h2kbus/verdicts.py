"""A scheduler's word on submissions: a record, or that it refused to make one."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final

import anyio

from h2kbus.connection import Connection
from h2kbus.errors import DuplicateJob, NotProvisioned, PermissionDenied, QuotaExceeded
from h2kbus.quotas import read_refusal
from h2kbus.store import Entry, JobStore
from subjects.lifecycle import same_job
from subjects.quota import Refusal
from subjects.spec import JobSpec
from subjects.topology import Topology

POLL_SECONDS: Final = 0.02
REFUSED_SECONDS: Final = 0.25
"""How often it is looked up whether those without a record were refused."""
TOLD_AT_ONCE: Final = 100_000
"""How many subjects of a stream a server names in one answer."""

Verdict = Entry | DuplicateJob | QuotaExceeded


async def verdicts_on(
    connection: Connection,
    store: JobStore,
    submitter: str,
    specs: Mapping[str, JobSpec | None],
    timeout: float,
) -> AsyncGenerator[tuple[str, Verdict]]:
    """See `Bus.verdicts`."""
    pending = list(specs)
    now = anyio.current_time()
    until, look = now + timeout, now + REFUSED_SECONDS
    while pending:
        undecided = []
        for job_id, entry in zip(pending, await store.find_many(pending), strict=True):
            if entry is None:
                undecided.append(job_id)
            else:
                yield job_id, _same_or_duplicate(entry, specs[job_id])
        pending = undecided
        if pending and anyio.current_time() > look:
            look = anyio.current_time() + REFUSED_SECONDS
            refused = await _refused(connection, store, submitter, pending)
            pending = [job_id for job_id in pending if job_id not in refused]
            for job_id, error in refused.items():
                yield job_id, error
        if not pending or anyio.current_time() > until:
            return
        await anyio.sleep(POLL_SECONDS)


async def _refused(
    connection: Connection, store: JobStore, submitter: str, job_ids: Sequence[str]
) -> dict[str, QuotaExceeded]:
    """Those whose command is gone and left no record, if the submitter has been told of refusals."""
    refusal = await _refusal(connection, store.topology, submitter)
    if refusal is None:
        return {}
    waiting = await _waiting(connection, store.topology, submitter)
    if waiting is None:
        return {}
    read = [job_id for job_id in job_ids if job_id not in waiting]
    # A scheduler makes the record before it removes the command.
    found = await store.find_many(read)
    gone = [job_id for job_id, entry in zip(read, found, strict=True) if entry is None]
    return {job_id: QuotaExceeded(refusal.reason) for job_id in gone}


async def _refusal(connection: Connection, topology: Topology, submitter: str) -> Refusal | None:
    try:
        return await read_refusal(connection, topology, submitter)
    except PermissionDenied:
        # Who may not read the reason waits for the verdict as long as anybody does.
        return None


async def _waiting(connection: Connection, topology: Topology, submitter: str) -> set[str] | None:
    """The ids of the submitter's commands that no scheduler has read; None for more than can be told."""
    stream = topology.commands_stream
    query = {"subjects_filter": topology.grammar.commands(submitter=submitter)}
    try:
        info = await connection.api(f"STREAM.INFO.{stream}", query)
    except KeyError:
        raise NotProvisioned(f"this server has no stream {stream}") from None
    subjects = info["state"].get("subjects") or ()
    return None if len(subjects) >= TOLD_AT_ONCE else {each.rsplit(".", 1)[-1] for each in subjects}


def _same_or_duplicate(entry: Entry, spec: JobSpec | None) -> Entry | DuplicateJob:
    if spec is None or entry.record.spec is None or same_job(entry.record, spec):
        return entry
    return DuplicateJob(f"another job has the id {entry.record.job_id}")
