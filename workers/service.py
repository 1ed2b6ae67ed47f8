"""The worker process: pull, claim, execute, settle, one slot for each job, until told to drain."""

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskStatus
from nats.aio.msg import Msg

from h2kbus.connection import Connection
from h2kbus.crew import Crew
from h2kbus.errors import BusError, ErrorCode, H2KBusError
from h2kbus.logs import bound
from h2kbus.pull import Delivery
from h2kbus.slots import Slot, Slots
from h2kbus.telemetry import SILENT, Redelivered, Span, Telemetry
from subjects.catalog import OperationCatalog
from subjects.codec import encode
from subjects.events import milestone
from subjects.fleet import CONFINED, WorkerCapabilities, WorkerOrder
from subjects.topology import Topology
from workers.artifacts import Uploads
from workers.claim import Claims
from workers.complete import Settlement
from workers.execute import Means, execute
from workers.lanes import LaneWatch
from workers.lease import HeldLease, LeaseKeeper
from workers.orders import Orders
from workers.profile import Probes, Profile
from workers.pull import LanePuller
from workers.registry import Registry
from workers.site import ANYWHERE, Site
from workers.trace import add_steps, attempt_span, settle_span
from workers.trust import NO_KEYS, Keys, Trust

log = logging.getLogger("h2kbus.worker")

PAUSE_SECONDS: Final = 0.5
PROMISE_SECONDS: Final = 1.0
"""A job that was pulled for a slot that is about to be free goes back if that takes longer than this."""
GATHER_SECONDS: Final = 0.002
"""While jobs wait, slots that become free within this time are filled by one pull."""


class Worker:
    """Serves the lanes of one pool. `found` is what it advertises; its true capabilities route.

    With `probes` it looks again from time to time, and joins and leaves lanes accordingly. `site` is what
    its jobs may reach on this host. Of `keys` the trusted ones say whose jobs it executes, and the signer
    signs the manifests of its attempts.
    """

    def __init__(
        self,
        connection: Connection,
        topology: Topology,
        catalog: OperationCatalog,
        found: WorkerCapabilities,
        probes: Probes | None = None,
        *,
        site: Site = ANYWHERE,
        keys: Keys = NO_KEYS,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._telemetry = telemetry
        self._connection = connection
        self._topology = topology
        self._catalog = catalog
        self._site = site
        self._profile = Profile(found, probes, self._on_capabilities)
        self._worker_id = found.worker_id
        self._slots = Slots(found.max_concurrent_jobs)
        # A job whose end is being told has given back its slot already, and one that was pulled waits for it.
        self._crew = Crew(3 * found.max_concurrent_jobs, self._work)
        self._keeper = LeaseKeeper()
        self._draining = False
        self._cordoned = False
        self._settlement = Settlement(connection, topology, telemetry.observe)
        self._uploads = Uploads(connection, topology, site, self._keeper, keys.signer)
        self._puller = LanePuller(connection, topology, self._accept)
        trust = None
        if keys.trusted is not None:
            trust = Trust(keys=keys.trusted, root=topology.grammar.root, pool=found.pool)
        observe = telemetry.observe
        self._claims = Claims(
            connection, topology, self._found, self._puller.stand_back, site, trust, observe=observe
        )
        self._lanes = LaneWatch(connection, topology, found.pool, self._on_lanes)
        self._lanes.set_capabilities(self._profile.capabilities)
        self._orders = Orders(connection, topology, found.worker_id, self._on_order)
        self._registry = Registry(connection, topology, self._describe, observe)
        self._pulling = anyio.CancelScope()

    async def serve(
        self, *, grace: float, task_status: TaskStatus[Callable[[], None]] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Work until `drain`, then finish what runs within `grace` seconds and hand back the rest.

        Once ready it gives `drain` to `task_status`.
        """
        with bound(worker_id=self._worker_id):
            self._tell_confinement()
            await self._serve(grace, task_status)

    async def _serve(self, grace: float, task_status: TaskStatus[Callable[[], None]]) -> None:
        await self._registry.join()
        await self._orders.read()
        await self._puller.open()
        async with anyio.create_task_group() as background:
            background.start_soon(self._lanes.run)
            background.start_soon(self._registry.run)
            background.start_soon(self._keeper.run)
            background.start_soon(self._puller.give_back)
            background.start_soon(self._uploads.run)
            background.start_soon(self._listen)
            background.start_soon(self._orders.run)
            background.start_soon(self._profile.run)
            task_status.started(self.drain)
            async with anyio.create_task_group() as jobs:
                jobs.start_soon(self._crew.serve)
                with self._pulling:
                    await self._pump()
                await self._finish(grace)
                self._crew.dismiss()
            background.cancel_scope.cancel()
        with contextlib.suppress(BusError):
            await self._registry.leave()

    def drain(self) -> None:
        """Take no more jobs; `serve` returns once those that run are finished or handed back."""
        self._draining = True
        self._pulling.cancel()
        self._registry.hurry()

    async def _pump(self) -> None:
        while True:
            room = await self._slots.wait_coming()
            if self._puller.backlog:
                with anyio.move_on_after(GATHER_SECONDS):
                    await self._slots.wait_coming((self._slots.limit + 1) // 2)
                room = self._slots.coming
            try:
                await self._puller.fill(room)
            except BusError as error:
                log.warning("cannot pull jobs: %s", error)
                await anyio.sleep(PAUSE_SECONDS)

    def _accept(self, delivery: Delivery) -> bool:
        """Take a job that has been pulled if there is a slot for it, or will be in a moment."""
        slot = None if self._draining else self._slots.reserve()
        if slot is not None:
            self._crew.give((delivery, slot))
        return slot is not None

    async def _work(self, work: tuple[Delivery, Slot]) -> None:
        """One job, from its message to its settlement. The edge where what went wrong is logged."""
        delivery, slot = work
        job_id = delivery.subject.rsplit(".", 1)[-1]
        if delivery.times_delivered > 1:
            self._telemetry.observe(Redelivered("jobs"))
        with slot, bound(job_id=job_id):
            try:
                if not await self._is_there(slot):
                    await delivery.nak()
                elif not self._keeper.holds(job_id):
                    await self._run(delivery, slot)
            except H2KBusError as error:
                log.warning("%s comes again: %s (%s)", delivery.subject, error, error.error_code)
            except Exception:
                log.exception("%s met a defect; it comes again", delivery.subject)

    async def _is_there(self, slot: Slot) -> bool:
        """Whether the slot has become free; its last holder's outcome may be slow to be written."""
        if not slot.is_ready:
            with anyio.move_on_after(PROMISE_SECONDS):
                await slot.wait_ready()
        return slot.is_ready and not self._draining

    async def _run(self, delivery: Delivery, slot: Slot) -> None:
        began_ns = time.time_ns()
        lease = await self._claims.claim(delivery)
        if lease is None:
            return
        self._keeper.add(lease)
        try:
            with lease.log_fields(), attempt_span(self._telemetry.tracer, lease, began_ns) as span:
                await self._attempt(lease, slot, span)
        finally:
            self._keeper.remove(lease)

    async def _attempt(self, lease: HeldLease, slot: Slot, span: Span) -> None:
        await self._tell_claim(lease)
        outcome = await execute(lease, Means(self._catalog, self._profile.capabilities, self._site))
        outcome = await self._uploads.finish(lease, outcome)
        add_steps(span, lease, outcome)
        with settle_span(span):
            await self._settlement.settle(lease, outcome, slot)

    async def _tell_claim(self, lease: HeldLease) -> None:
        """Say at once that the job runs. Unconfirmed: the next event would make up for a lost one."""
        event = milestone(lease.entry.record, lease.entry.revision)
        subject = self._topology.grammar.progress(lease.job_id)
        try:
            await self._connection.publish_unconfirmed(subject, encode(event))
            # It would stay unsent for as long as the attempt begins with work of its own: the client sends in
            # a task, which has its turn here, and uvloop from 0.23 on writes then and not when the turn ends.
            await anyio.lowlevel.checkpoint()
        except BusError as error:
            log.warning("job %s: its start was not told: %s", lease.job_id, error)

    async def _finish(self, grace: float) -> None:
        """Let running jobs end; after the grace they are stopped and handed back."""
        with contextlib.suppress(BusError):
            await self._puller.close()
        with anyio.move_on_after(grace):
            await self._slots.wait_idle()
        self._keeper.stop_all(ErrorCode.DRAINED, f"the worker was stopped and did not end within {grace:g} s")
        await self._slots.wait_idle()

    async def _listen(self) -> None:
        """Control messages name jobs that changed. They are hints: a renewal reads what is true."""
        send, receive = anyio.create_memory_object_stream[str](100)

        def on_message(message: Msg) -> None:
            with contextlib.suppress(anyio.WouldBlock, UnicodeDecodeError):
                send.send_nowait(message.data.decode())

        control = self._topology.grammar.control(self._worker_id)
        with send, receive:
            subscription = await self._connection.listen(control, on_message)
            try:
                async for job_id in receive:
                    await self._keeper.check(job_id)
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                    await subscription.unsubscribe()

    def _on_lanes(self) -> None:
        self._puller.serve(() if self._cordoned else self._lanes.lanes, self._profile.capabilities)

    def _on_capabilities(self) -> None:
        self._lanes.set_capabilities(self._profile.capabilities)
        self._on_lanes()
        self._registry.hurry()

    def _on_order(self, order: WorkerOrder | None) -> None:
        if order is not None and order.order == "drain" and not self._draining:
            log.info("told by %s to drain", order.by)
            self.drain()
        cordoned = order is not None and order.order == "cordon"
        if cordoned != self._cordoned:
            log.info("told to take no more jobs" if cordoned else "told to take jobs again")
            self._cordoned = cordoned
            self._on_lanes()
            self._registry.hurry()

    def _tell_confinement(self) -> None:
        found = self._profile.found
        if not found.capabilities.get(CONFINED):
            log.warning("tools are not confined: %s", found.evidence.get(CONFINED, "it was not probed"))

    def _found(self) -> WorkerCapabilities:
        return self._profile.found

    def _describe(self) -> WorkerCapabilities:
        return msgspec.structs.replace(
            self._profile.found,
            free_slots=self._slots.free,
            running_jobs=self._keeper.job_ids,
            draining=self._draining,
            cordoned=self._cordoned,
        )
