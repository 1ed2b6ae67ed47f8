"""The Python client: submit jobs, follow them, read and cancel them.

async with h2kbus.connect("nats://127.0.0.1:4222") as bus:
    job_id = await bus.submit(spec)
    async for event in bus.watch(job_id):
        print(event.progress_percent, event.message)
    record = await bus.result(job_id)
"""

import contextlib
import datetime as dt
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from h2kbus.connection import Connection
from h2kbus.connection import connect as connect_to_server
from h2kbus.errors import (
    BusError,
    InvalidMessage,
    JobFinished,
    JobNotFound,
    NotProvisioned,
    OperationFailed,
    SubjectTaken,
    WorkerNotFound,
)
from h2kbus.fleet import LaneLoad, give_order, read_lanes, read_loads, read_workers
from h2kbus.ids import new_job_id
from h2kbus.limits import LimitUse, read_limits, set_ceiling
from h2kbus.settings import DEFAULT_URL, ConnectionSettings
from h2kbus.signing import Signer
from h2kbus.store import Entry, JobStore
from h2kbus.telemetry import UNTRACED, Tracer, trace_headers
from h2kbus.verdicts import Verdict, verdicts_on
from h2kbus.watch import RESYNC_SECONDS, EventFeed, next_within
from subjects.codec import convert, encode
from subjects.commands import CancelCommand, RetryCommand, Verb
from subjects.events import ProgressEvent, milestone
from subjects.fleet import LaneAnnouncement, WorkerCapabilities, WorkerOrder
from subjects.grammar import Grammar
from subjects.limits import Ceiling
from subjects.record import JobRecord
from subjects.spec import MAX_SPEC_BYTES, JobSpec, LimitLabel, Places
from subjects.states import State
from subjects.topology import Topology

VERDICT_SECONDS: Final = 5.0
SUBMIT_WINDOW: Final = 512
"""Submissions on their way at once: enough to hide the round trip, few enough to stay in memory."""


class Bus:
    """A client's view of one fleet. Made by `h2kbus.connect`; safe to share between tasks."""

    def __init__(
        self,
        connection: Connection,
        grammar: Grammar,
        submitter: str,
        signer: Signer | None = None,
        tracer: Tracer = UNTRACED,
    ) -> None:
        """With a `signer`, jobs are signed when they are submitted and when they are run again."""
        self.connection = connection
        self.signer = signer
        self.grammar = grammar
        self.topology = Topology(grammar)
        self.store = JobStore(connection, self.topology)
        self.submitter = submitter
        self.tracer = tracer

    async def submit(self, spec: JobSpec) -> str:
        """Hand a job to the bus and return its id, once the bus has stored it durably.

        Submitting the same job again under its id changes nothing. Raises InvalidMessage for a job that
        is too large; see `verdict` for the scheduler's word on it.
        """
        [job_id] = await self._submit_together([spec])
        return job_id

    async def submit_many(self, specs: Iterable[JobSpec]) -> AsyncIterator[str]:
        """Submit any number of jobs, hundreds at a time; yields each id once its job is stored, in order."""
        batch: list[JobSpec] = []
        for spec in specs:
            batch.append(spec)
            if len(batch) == SUBMIT_WINDOW:
                for job_id in await self._submit_together(batch):
                    yield job_id
                batch = []
        for job_id in await self._submit_together(batch):
            yield job_id

    async def verdict(
        self, job_id: str, spec: JobSpec | None = None, *, timeout: float = VERDICT_SECONDS
    ) -> Entry | None:
        """Wait for the scheduler's word on a submission, `timeout` seconds at the most.

        Returns the record's entry, or None when no scheduler has answered yet. Raises DuplicateJob when
        the record belongs to another job than `spec`, and QuotaExceeded when the job was refused for that.
        """
        async with contextlib.aclosing(self.verdicts({job_id: spec}, timeout=timeout)) as words:
            async for _, word in words:
                if not isinstance(word, Entry):
                    raise word
                return word
        return None

    def verdicts(
        self, specs: Mapping[str, JobSpec | None], *, timeout: float = VERDICT_SECONDS
    ) -> AsyncGenerator[tuple[str, Verdict]]:
        """The scheduler's word on many submissions, each as soon as it is there, until `timeout` (seconds).

        Ids that it has not answered by then are left out. `specs` gives the job behind each id; None
        where the id is new, so that it cannot belong to another job.
        """
        sent = {job_id: spec and self._as_sent(spec, job_id) for job_id, spec in specs.items()}
        return verdicts_on(self.connection, self.store, self.submitter, sent, timeout)

    async def status(self, job_id: str) -> JobRecord:
        """The job's record. Raises JobNotFound."""
        return (await self.store.get(job_id)).record

    async def is_waiting(self, job_id: str) -> bool:
        """Whether a submission or a retry under this id waits for a scheduler. Raises NotProvisioned."""
        stream, subject = self.topology.commands_stream, self.grammar.commands(job_id=job_id)
        try:
            info = await self.connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
        except KeyError:
            raise NotProvisioned(f"this server has no stream {stream}") from None
        waiting = map(self.grammar.parse_command, info["state"].get("subjects") or ())
        return any(command.verb is not Verb.CANCEL for command in waiting)

    async def watch(self, job_id: str) -> AsyncIterator[ProgressEvent]:
        """Everything that happened to the job, then what happens, ending with its terminal event.

        Raises JobNotFound for an id that has neither a record nor a submission that waits.
        """
        await self._require(job_id)

        async def closing() -> ProgressEvent | None:
            entry = await self.store.find(job_id)
            ended = entry is not None and entry.record.state.terminal
            return milestone(entry.record, entry.revision) if entry and ended else None

        async for event in EventFeed(self.connection, self.topology, job_id).follow(closing):
            yield event
            if event.state.terminal:
                return

    async def result(self, job_id: str, *, check: bool = False) -> JobRecord:
        """Wait for the end of the job and return its record.

        With `check`, raises OperationFailed unless the job COMPLETED. Raises JobNotFound.
        """
        entry = await self.store.find(job_id)
        if entry is None or not entry.record.state.terminal:
            await self._until_finished(job_id)
        record = await self.status(job_id)
        error = record.result.error if record.result else None
        if check and record.state is not State.COMPLETED and error:
            raise OperationFailed(error.code, error.message, **error.details)
        return record

    async def results(self, job_ids: Iterable[str]) -> AsyncIterator[JobRecord]:
        """The records of many jobs, each as it ends, over one subscription."""
        pending = dict.fromkeys(job_ids)
        async with EventFeed(self.connection, self.topology, "*").open() as events:
            while pending:
                for entry in await self.store.find_many(list(pending)):
                    if entry is not None and entry.record.state.terminal:
                        del pending[entry.record.job_id]
                        yield entry.record
                while pending and (event := await next_within(events, RESYNC_SECONDS)) is not None:
                    if event.state.terminal and event.job_id in pending:
                        del pending[event.job_id]
                        yield await self.status(event.job_id)

    async def cancel(self, job_id: str, reason: str = "") -> None:
        """Ask for the job to be stopped. Raises JobNotFound, or JobFinished when it has ended."""
        entry = await self.store.find(job_id)
        if entry is None:
            await self._require(job_id)
        elif entry.record.state.terminal:
            raise JobFinished(f"job {job_id} is {entry.record.state} already")
        with contextlib.suppress(SubjectTaken):
            await self.connection.publish(
                self.grammar.command(self.submitter, Verb.CANCEL, job_id),
                encode(CancelCommand(reason=reason)),
            )

    async def retry(self, job_id: str) -> str:
        """Run a finished job again as a new job; returns the new id.

        With a signer, only a job that its own key has signed is signed anew: whoever may write records
        could otherwise have anything signed. Raises JobNotFound, and InvalidMessage for a job that has not
        ended or that is not signed so.
        """
        record = await self.status(job_id)
        if not record.state.terminal:
            raise InvalidMessage(
                f"job {job_id} is {record.state}; only a finished job can be retried", "$.state"
            )
        new_id = new_job_id()
        body = encode(self._retry_of(record, new_id))
        with self.tracer.span("retry", job_id=new_id) as span:
            subject = self.grammar.command(self.submitter, Verb.RETRY, new_id)
            await self.connection.publish(subject, body, trace_headers(span.traceparent))
        return new_id

    def _retry_of(self, record: JobRecord, new_id: str) -> RetryCommand:
        plain, spec = RetryCommand(parent=record.job_id), record.spec
        if self.signer is None or spec is None:
            return plain
        signed = self.signer.sign_again(spec, record.job_id, new_id, self.grammar.root)
        return msgspec.structs.replace(plain, created_at=signed.created_at, signature=signed.signature)

    async def jobs(
        self, *, state: State | None = None, since: dt.datetime | None = None
    ) -> AsyncIterator[JobRecord]:
        """Records, least recently changed first; `since` leaves out those that changed before."""
        moment = since.isoformat() if since else None
        async for entry in self.store.scan(moment):
            if state is None or entry.record.state is state:
                yield entry.record

    async def workers(self) -> list[WorkerCapabilities]:
        """The workers whose heartbeats have not stopped, by id."""
        return await read_workers(self.connection, self.topology)

    async def lanes(self) -> list[LaneAnnouncement]:
        """Every lane that has a consumer."""
        return await read_lanes(self.connection, self.topology)

    async def lane_loads(self) -> list[LaneLoad]:
        """How many jobs wait and run in each lane, and how many workers wait for its next one."""
        return await read_loads(self.connection, self.topology)

    async def limits(self) -> list[LimitUse]:
        """Every limit that has a ceiling or a job, and the jobs that have its places."""
        return await read_limits(self.connection, self.topology)

    async def set_ceiling(self, label: str, at_most: int | None) -> None:
        """Let at most so many jobs with the label run at once, whatever they ask for; None lifts that.

        Those that have a place already keep it. Raises InvalidMessage for a bad label or number.
        """
        convert(LimitLabel, label)
        ceiling = None
        if at_most is not None:
            number = convert(Places, at_most)
            ceiling = Ceiling(at_most=number, by=self.submitter, at=dt.datetime.now(dt.UTC))
        await set_ceiling(self.connection, self.topology, label, ceiling)

    async def order(
        self, worker_id: str, order: Literal["cordon", "drain", "uncordon"], reason: str = ""
    ) -> None:
        """Tell a worker to take no new jobs, to end when its jobs have ended, or to go on taking jobs.

        Cordoning outlasts a restart of the worker under its name. Raises WorkerNotFound for an order to a
        worker that does not live.
        """
        given = None
        if order != "uncordon":
            if all(each.worker_id != worker_id for each in await self.workers()):
                raise WorkerNotFound(f"no live worker {worker_id}")
            now = dt.datetime.now(dt.UTC)
            given = WorkerOrder(order=order, by=self.submitter, at=now, reason=reason)
        await give_order(self.connection, self.topology, worker_id, given)

    def _as_sent(self, spec: JobSpec, job_id: str) -> JobSpec:
        """The job under its id, signed if there is a signer; a signature that it has is kept without one.

        Raises InvalidMessage for a job that cannot be signed.
        """
        created_at = spec.created_at or dt.datetime.now(dt.UTC)
        named = msgspec.structs.replace(spec, job_id=job_id, created_at=created_at)
        return named if self.signer is None else self.signer.sign(named, self.grammar.root)

    def _command(self, spec: JobSpec) -> tuple[str, str, bytes]:
        """The id, subject and body of a submission. Raises InvalidMessage."""
        job_id = spec.job_id or new_job_id()
        body = encode(self._as_sent(spec, job_id))
        if len(body) > MAX_SPEC_BYTES:
            raise InvalidMessage(f"the job has {len(body)} bytes; {MAX_SPEC_BYTES} are allowed")
        return job_id, self.grammar.command(self.submitter, Verb.SUBMIT, job_id), body

    async def _submit_together(self, specs: list[JobSpec]) -> list[str]:
        commands = [self._command(spec) for spec in specs]
        with contextlib.ExitStack() as spans:
            messages = []
            for job_id, subject, body in commands:
                span = spans.enter_context(self.tracer.span("submit", job_id=job_id))
                messages.append((subject, body, trace_headers(span.traceparent)))
            outcomes = await self.connection.publish_together(*messages)
            for outcome in outcomes:
                # The same id may wait for the scheduler already: `verdict` tells whether it is the same job.
                if isinstance(outcome, BusError) and not isinstance(outcome, SubjectTaken):
                    raise outcome
        return [job_id for job_id, _, _ in commands]

    async def _until_finished(self, job_id: str) -> None:
        async for event in self.watch(job_id):
            if event.state.terminal:
                return

    async def _require(self, job_id: str) -> None:
        """A scheduler makes the record before it removes the command: look for the command first."""
        if not await self.is_waiting(job_id) and await self.store.find(job_id) is None:
            raise JobNotFound(f"no job {job_id}")


@contextlib.asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    settings: ConnectionSettings | None = None,
    submitter: str | None = None,
    tracer: Tracer = UNTRACED,
) -> AsyncIterator[Bus]:
    """Connect to a bus.

    `settings` says everything; `url` alone is enough for an open server, and for this user's own `h2kbus up`
    on this machine. `tracer` keeps a span of each submission, with which the job's trace begins (see
    `h2kbus.tracing`). Raises BusUnreachable, PermissionDenied or ServerUnfit, and SettingsError for a key to
    sign with that is none.
    """
    chosen = settings or ConnectionSettings(url=url or DEFAULT_URL).with_local_token(os.environ)
    if url is not None:
        chosen = msgspec.structs.replace(chosen, url=url)
    signer = Signer.from_file(Path(chosen.sign_key)) if chosen.sign_key else None
    async with connect_to_server(chosen) as connection:
        yield Bus(connection, Grammar(chosen.root), submitter or chosen.submitter(), signer, tracer)
