"""The scheduler process: pulls commands and carries them out, many at a time, and sees to its duties.

Any number of schedulers may run side by side.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskStatus

from h2kbus.connection import Connection
from h2kbus.crew import Crew
from h2kbus.errors import BusError, ErrorCode, H2KBusError
from h2kbus.logs import bound
from h2kbus.provision import provision
from h2kbus.pull import Delivery, PullInbox, PullRequest
from h2kbus.slots import Slot, Slots
from h2kbus.store import JobStore
from h2kbus.telemetry import (
    SILENT,
    CommandAnswered,
    Redelivered,
    Telemetry,
    trace_headers,
    traceparent_of,
)
from scheduler.admission import Admission
from scheduler.census import Census
from scheduler.dispatch import Dispatch
from scheduler.duties import Duties
from scheduler.fleet import FleetView
from scheduler.gate import Gate
from scheduler.intake import Intake
from scheduler.lanes import LaneRegistry
from scheduler.limits import Limits
from scheduler.locks import ImageLocks
from scheduler.mending import Mending
from subjects.catalog import OperationCatalog
from subjects.commands import Verb
from subjects.topology import SECOND, Topology

log = logging.getLogger("h2kbus.scheduler")

CONCURRENCY: Final = 256
PULL_SECONDS: Final = 20
RETRY_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.5
MAKES_JOBS: Final = frozenset({Verb.SUBMIT, Verb.RETRY})


class Scheduler:
    """Serves one fleet until told to drain. With `own_name` it takes jobs in the submitter's name only."""

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        catalog: OperationCatalog,
        name: str,
        *,
        own_name: bool = False,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._connection = connection
        self._topology = topology
        store = JobStore(connection, topology)
        self._telemetry = telemetry
        dispatch = Dispatch(connection, topology, store, name, telemetry)
        fleet = FleetView(connection, topology)
        locks = ImageLocks(connection, topology, store, catalog)
        admission = Admission(locks, Limits(connection, topology, store), fleet)
        self._lanes = LaneRegistry(connection, topology)
        self._gate = Gate(connection, topology, name)
        self._intake = Intake(dispatch, self._lanes, admission, fleet, catalog, self._gate, own_name=own_name)
        self._duties = Duties(dispatch, admission, fleet)
        self._mending = Mending(connection, topology, self._lanes)
        self._census = Census(connection, topology, store, telemetry.observe)
        self._slots = Slots(CONCURRENCY)
        self._crew = Crew(CONCURRENCY, self._handle)
        self._drain = anyio.CancelScope()

    async def serve(self, *, task_status: TaskStatus[Callable[[], None]] = anyio.TASK_STATUS_IGNORED) -> None:
        """Provision the topology, then handle commands until `drain`; what was begun is finished.

        Once ready it gives `drain` to `task_status`.
        """
        await provision(self._connection, self._topology)
        await self._lanes.load()
        # What submitters have is known before the first command is read.
        await self._gate.refresh()
        async with anyio.create_task_group() as background:
            background.start_soon(self._duties.run)
            background.start_soon(self._mending.run)
            background.start_soon(self._gate.run)
            if self._telemetry.is_observed:
                background.start_soon(self._census.run)
            await self._serve_commands(task_status)
            background.cancel_scope.cancel()

    async def _serve_commands(self, task_status: TaskStatus[Callable[[], None]]) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._crew.serve)
            inbox = PullInbox(self._connection, self._topology.commands_stream, self._begin)
            await inbox.open()
            task_status.started(self.drain)
            with self._drain:
                await self._pump(inbox)
            with contextlib.suppress(BusError):
                await inbox.close()
            self._crew.dismiss()

    def drain(self) -> None:
        """Stop taking commands; `serve` returns once those under way are done."""
        self._drain.cancel()

    async def _pump(self, inbox: PullInbox) -> None:
        while True:
            # Waiting for half of them to be free lets one pull bring many commands under load.
            free = await self._slots.wait_free(CONCURRENCY // 2)
            request = PullRequest(batch=free, expires=PULL_SECONDS * SECOND)
            try:
                pull = await inbox.send(self._topology.scheduler_consumer, request)
                await pull.wait()
                failure = "its consumer is gone" if pull.failed else None
            except BusError as error:
                failure = str(error)
            if failure:
                log.warning("cannot pull commands: %s", failure)
                await anyio.sleep(PAUSE_SECONDS)

    def _begin(self, delivery: Delivery) -> None:
        self._crew.give((delivery, self._slots.take()))

    async def _handle(self, work: tuple[Delivery, Slot]) -> None:
        """The edge: a command that fails comes again, and the reason is logged once for each time."""
        delivery, slot = work
        verb, job_id = delivery.subject.rsplit(".", 2)[1:]
        if delivery.times_delivered > 1:
            self._telemetry.observe(Redelivered("commands"))
        with slot, bound(job_id=job_id):
            try:
                taken = await self._answer(delivery, verb, job_id)
            except H2KBusError as error:
                log.warning("%s will be tried again: %s (%s)", delivery.subject, error, error.error_code)
                await self._again(delivery, verb)
            except Exception:
                log.exception("%s met a defect; it will be tried again", delivery.subject)
                await self._again(delivery, verb)
            else:
                self._telemetry.observe(CommandAnswered(verb, "handled" if taken else "refused"))

    async def _answer(self, delivery: Delivery, verb: str, job_id: str) -> bool:
        """What makes a job is a step of its trace, from which the job's record goes on."""
        if verb not in MAKES_JOBS:
            return await self._intake.handle(delivery)
        parent = traceparent_of(delivery.headers)
        with self._telemetry.tracer.span("intake", parent, verb=verb, job_id=job_id) as span:
            headers = trace_headers(span.traceparent)
            taken = await self._intake.handle(msgspec.structs.replace(delivery, headers=headers))
            if not taken:
                span.fail(ErrorCode.QUOTA_EXCEEDED)
        return taken

    async def _again(self, delivery: Delivery, verb: str) -> None:
        self._telemetry.observe(CommandAnswered(verb, "deferred"))
        try:
            await delivery.nak(RETRY_SECONDS)
        except BusError as error:
            log.warning("%s comes again only after its ack_wait: %s", delivery.subject, error)
