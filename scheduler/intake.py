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
from scheduler.gate import Gate
from scheduler.lanes import LaneRegistry
from subjects.catalog import OperationCatalog
from subjects.codec import convert, decode
from subjects.commands import CancelCommand, RetryCommand, Verb
from subjects.fit import Demand
from subjects.grammar import CommandSubject
from subjects.identity import is_own_name
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
        gate: Gate,
        *,
        own_name: bool = False,
    ) -> None:
        """With `own_name` a job in the name of somebody else than its submitter is refused."""
        self._dispatch = dispatch
        self._connection = dispatch.connection
        self._topology = dispatch.topology
        self._store = dispatch.store
        self._lanes = lanes
        self._admission = admission
        self._catalog = catalog
        self._fleet = fleet
        self._gate = gate
        self._own_name = own_name
        self._name = dispatch.name
        self._telemetry = dispatch.telemetry
        self._handlers: dict[Verb, Callable[[CommandSubject, Delivery], Awaitable[None]]] = {
            Verb.SUBMIT: self._submit,
            Verb.CANCEL: self._cancel,
            Verb.RETRY: self._retry,
        }

    async def handle(self, delivery: Delivery) -> bool:
        """Carry out one command and acknowledge it. Raises BusError when the bus fails in between.

        False for one that is more than its submitter's quota allows: it is acknowledged and told of, and
        that is all.
        """
        submitter, verb, _ = delivery.subject.rsplit(".", 3)[1:]
        size, again = len(delivery.data), delivery.times_delivered > 1
        reason = self._gate.objection(submitter, verb, size, again=again)
        if reason is not None:
            await self._gate.tell(submitter, reason)
            await delivery.ack_unconfirmed()
            return False
        with self._gate.under_way(submitter, verb, size):
            await self._carry_out(delivery)
        return True

    async def _carry_out(self, delivery: Delivery) -> None:
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
        wanted = decode(RetryCommand, delivery.data)
        parent_id = wanted.parent
        parent = await self._store.find(parent_id)
        if parent is None or parent.record.spec is None or not parent.record.state.terminal:
            raise InvalidMessage(f"job {parent_id} is not a finished job that can be retried", "$.parent")
        # The parent's own signature is over the parent's id.
        spec = msgspec.structs.replace(
            parent.record.spec,
            job_id=command.job_id,
            created_at=wanted.created_at or dt.datetime.now(dt.UTC),
            signature=wanted.signature,
        )
        await self._accept(command, spec, delivery, parent=parent.record)

    async def _accept(
        self, command: CommandSubject, spec: JobSpec, delivery: Delivery, parent: JobRecord | None = None
    ) -> None:
        try:
            if self._own_name:
                require_own_name(command.submitter, spec)
            demand = await self._demand(spec)
            await self._lanes.ensure(spec.pool, demand.lane, spec.execution_policy.priority)
            record = created(
                spec,
                job_id=command.job_id,
                submitter=command.submitter,
                lane=demand.lane,
                now=dt.datetime.now(dt.UTC),
                by=self._name,
                parent=parent.job_id if parent else None,
                waits=await self._hindrance(command.job_id, spec, demand),
            )
            size, trace = (
                parent.spec_bytes if parent else len(delivery.data),
                traceparent_of(delivery.headers),
            )
            record = msgspec.structs.replace(record, spec_bytes=size, traceparent=trace)
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
        if entry.record is record:
            self._gate.made(record)
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


def require_own_name(submitter: str, spec: JobSpec) -> None:
    """Raises InvalidMessage for a job that says it comes from somebody else than who submitted it."""
    if not is_own_name(submitter, spec.audit.requested_by):
        reason = f"{spec.audit.requested_by!r} is not {submitter}, who submitted the job"
        raise InvalidMessage(reason, "$.audit.requested_by")


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
