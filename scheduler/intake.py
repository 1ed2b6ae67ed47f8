"""One command in, its effects out.

Every step may be repeated: a redelivered command finishes what was cut off.
"""

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from h2kbus.errors import (
    ErrorCode,
    InvalidMessage,
    InvalidSubject,
    JobNotFound,
    RevisionConflict,
)
from h2kbus.journal import bury
from h2kbus.pull import Delivery
from h2kbus.store import Entry
from h2kbus.telemetry import DeadLettered, moved, traceparent_of
from scheduler.admission import Admission
from scheduler.dispatch import Dispatch
from scheduler.fleet import FleetView
from scheduler.lanes import LaneRegistry
from subjects.catalog import OperationCatalog
from subjects.codec import convert, decode
from subjects.commands import CancelCommand, RetryCommand, Verb
from subjects.fit import Demand
from subjects.grammar import CommandSubject
from subjects.lanes import job_needs
from subjects.lifecycle import created, pending, refused, same_job
from subjects.record import JobRecord
from subjects.result import JobError
from subjects.spec import MAX_SPEC_BYTES, JobId, JobSpec
from subjects.states import State

UNKNOWN_JOB_TRIES: Final = 10
"""A cancel may overtake its submit; after this many seconds there is no such job."""


class Intake:
    """Handles commands: decode, validate, compare-and-set, publish, acknowledge."""

    def __init__(
        self,
        dispatch: Dispatch,
        lanes: LaneRegistry,
        admission: Admission,
        fleet: FleetView,
        catalog: OperationCatalog,
    ) -> None:
        self._dispatch = dispatch
        self._connection = dispatch.connection
        self._topology = dispatch.topology
        self._store = dispatch.store
        self._lanes = lanes
        self._admission = admission
        self._catalog = catalog
        self._fleet = fleet
        self._name = dispatch.name
        self._telemetry = dispatch.telemetry
        self._handlers: dict[Verb, Callable[[CommandSubject, Delivery], Awaitable[None]]] = {
            Verb.SUBMIT: self._submit,
            Verb.CANCEL: self._cancel,
            Verb.RETRY: self._retry,
        }

    async def handle(self, delivery: Delivery) -> None:
        """Carry out one command and acknowledge it. Raises BusError when the bus fails in between."""
        try:
            command = self._topology.grammar.parse_command(delivery.subject)
            convert(JobId, command.job_id)
            await self._handlers[command.verb](command, delivery)
        except (InvalidSubject, InvalidMessage) as error:
            await self._bury(delivery, "invalid-command", str(error))
        else:
            await delivery.ack_unconfirmed()

    async def _submit(self, command: CommandSubject, delivery: Delivery) -> None:
        try:
            spec = read_spec(command.job_id, delivery.data)
        except InvalidMessage as error:
            await self._refuse(command, None, error, delivery)
            return
        await self._accept(command, spec, delivery)

    async def _retry(self, command: CommandSubject, delivery: Delivery) -> None:
        parent_id = decode(RetryCommand, delivery.data).parent
        parent = await self._store.find(parent_id)
        if parent is None or parent.record.spec is None or not parent.record.state.terminal:
            raise InvalidMessage(f"job {parent_id} is not a finished job that can be retried", "$.parent")
        now = dt.datetime.now(dt.UTC)
        spec = msgspec.structs.replace(parent.record.spec, job_id=command.job_id, created_at=now)
        await self._accept(command, spec, delivery, parent=parent_id)

    async def _accept(
        self, command: CommandSubject, spec: JobSpec, delivery: Delivery, parent: str | None = None
    ) -> None:
        try:
            demand = await self._demand(spec)
            await self._lanes.ensure(spec.pool, demand.lane, spec.execution_policy.priority)
            record = created(
                spec,
                job_id=command.job_id,
                submitter=command.submitter,
                lane=demand.lane,
                now=dt.datetime.now(dt.UTC),
                by=self._name,
                parent=parent,
                waits=await self._hindrance(command.job_id, spec, demand),
            )
            record = msgspec.structs.replace(record, traceparent=traceparent_of(delivery.headers))
            if record.state is State.QUEUED:
                unserved = await self._fleet.unserved(demand)
                record = pending(record, unserved, now=record.updated_at)
        except InvalidMessage as error:
            await self._refuse(command, spec, error, delivery)
            return
        except InvalidSubject as error:
            # A lane of very many capabilities has a name that no subject takes.
            reason = InvalidMessage(str(error), "$.capability_requirements")
            await self._refuse(command, spec, reason, delivery)
            return
        entry = await self._create(record)
        if entry.record.spec is None or not same_job(entry.record, spec):
            await self._bury_copy(delivery, "duplicate-id", f"another job has the id {command.job_id}")
        elif entry.record.state is State.QUEUED:
            await self._dispatch.deliver(entry)
        elif entry.record.state is State.VALIDATED:
            await self._dispatch.tell(entry)

    async def _demand(self, spec: JobSpec) -> Demand:
        """What the job is routed by; capabilities that it prefers count while somebody has them."""
        declaration = self._catalog.declaration_of(spec)
        demand = Demand.of(spec, job_needs(self._catalog.needs_of(declaration, spec), spec))
        if declaration.prefers <= demand.needs:
            return demand
        return await self._fleet.preferred(demand, declaration.prefers)

    async def _hindrance(self, job_id: str, spec: JobSpec, demand: Demand) -> str | None:
        """Why the job may not go to its lane yet, in words; the duties admit it when it may.

        What has to do with points in time is left to them: they know the server's clock.
        """
        policy = spec.execution_policy
        if policy.not_before is not None:
            return f"does not start before {policy.not_before.isoformat()}"
        if policy.deadline is not None:
            return "its deadline is held against the server's clock"
        return await self._admission.take(job_id, spec, demand)

    async def _create(self, record: JobRecord) -> Entry:
        """Create the record, or read the one that is there already."""
        try:
            entry = await self._store.create(record)
        except RevisionConflict:
            return await self._store.get(record.job_id)
        error = record.result.error if record.result else None
        self._telemetry.observe(moved(record, error.code if error else ""))
        return entry

    async def _refuse(
        self, command: CommandSubject, spec: JobSpec | None, error: InvalidMessage, delivery: Delivery
    ) -> None:
        """An invalid job ends FAILED at once, visible to its submitter; its original is kept aside."""
        problem = JobError(
            code=ErrorCode.INVALID_SPEC, message=str(error), phase="validate", details={"path": error.path}
        )
        record = refused(
            spec,
            job_id=command.job_id,
            submitter=command.submitter,
            error=problem,
            now=dt.datetime.now(dt.UTC),
            by=self._name,
        )
        trace = traceparent_of(delivery.headers)
        record = msgspec.structs.replace(record, traceparent=trace)
        with self._telemetry.tracer.span("refuse", trace, job_id=command.job_id) as span:
            span.fail(problem.code)
        entry = await self._create(record)
        if entry.record == record or delivery.times_delivered > 1:
            await self._tell_end(entry)
        await self._bury_copy(delivery, "invalid-spec", str(error))

    async def _cancel(self, command: CommandSubject, delivery: Delivery) -> None:
        reason = decode(CancelCommand, delivery.data).reason if delivery.data else ""
        entry = await self._store.find(command.job_id)
        if entry is None:
            if delivery.times_delivered < UNKNOWN_JOB_TRIES:
                raise JobNotFound(f"no job {command.job_id}")
            await self._bury_copy(delivery, "no-such-job", f"no job {command.job_id}")
            return
        if entry.record.state.terminal and delivery.times_delivered > 1:
            await self._tell_end(entry)
        words = f"cancelled by {command.submitter}" + (f": {reason}" if reason else "")
        cause = JobError(code=ErrorCode.CANCELLED, message=words)
        while not entry.record.state.terminal:
            try:
                await self._dispatch.stop(entry, cause)
            except RevisionConflict:
                entry = await self._store.get(command.job_id)
            else:
                return

    async def _tell_end(self, entry: Entry) -> None:
        """Tell of an end that nobody else will tell of: who wrote it may have died before it could."""
        if entry.record.state.terminal and entry.record.attempt == 0:
            await self._dispatch.tell(entry)

    async def _bury(self, delivery: Delivery, reason: str, message: str) -> None:
        await self._bury_copy(delivery, reason, message)
        await delivery.ack()

    async def _bury_copy(self, delivery: Delivery, reason: str, message: str) -> None:
        await bury(self._connection, self._topology, delivery, reason=reason, message=message, by=self._name)
        self._telemetry.observe(DeadLettered(reason))


def read_spec(job_id: str, data: bytes) -> JobSpec:
    """The job in a submit command. Its id is the subject's, and a payload may not say another.

    Raises InvalidMessage.
    """
    if len(data) > MAX_SPEC_BYTES:
        raise InvalidMessage(f"the job has {len(data)} bytes; {MAX_SPEC_BYTES} are allowed")
    spec = decode(JobSpec, data)
    if spec.job_id not in (None, job_id):
        raise InvalidMessage(f"the subject says {job_id!r}", "$.job_id")
    return msgspec.structs.replace(spec, job_id=job_id, created_at=spec.created_at or dt.datetime.now(dt.UTC))
