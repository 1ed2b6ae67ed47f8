"""The faults: a table of what may go wrong, each undone within bounded time."""

import contextlib
import random
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import psutil

from h2kbus.client import Bus
from h2kbus.errors import H2KBusError
from subjects.commands import Verb
from subjects.record import LaneMessage
from subjects.spec import JobSpec
from subjects.states import State
from tests.chaos.cluster import FAKETIME, Cluster, Node
from tests.chaos.node import POINTS, SCHEDULER_POINTS
from workers.scratch import MANIFEST

POISON: Final = (b"", b"\xff\xfe", b"[]", b'{"job_id": 7}', b"{" * 5000, b"x" * 900_000)


class Target:
    """What a fault may reach. `jobs` are those submitted lately, by id."""

    def __init__(self, cluster: Cluster, bus: Bus, place: Path, rng: random.Random, lease: float) -> None:
        self.cluster = cluster
        self.bus = bus
        self.place = place
        self.rng = rng
        self.lease = lease
        self.jobs: dict[str, JobSpec] = {}
        self.server_lock = anyio.Lock()

    @property
    def worker(self) -> Node:
        return self.rng.choice(self.cluster.workers)

    @property
    def scheduler(self) -> Node:
        return self.rng.choice(self.cluster.schedulers)

    @property
    def node(self) -> Node:
        return self.rng.choice(self.cluster.nodes)

    def recent(self) -> str | None:
        ids = list(self.jobs)[-60:]
        return self.rng.choice(ids) if ids else None


Fault = Callable[[Target], Awaitable[object]]


def _signal(pick: str, number: signal.Signals) -> Fault:
    async def fault(target: Target) -> None:
        node: Node = getattr(target, pick)
        node.signal(number)

    return fault


def _suspend(pick: str, shortest: float, longest: float) -> Fault:
    async def fault(target: Target) -> None:
        node: Node = getattr(target, pick)
        seconds = target.lease * target.rng.uniform(shortest, longest)
        pid = node.pid
        node.signal(signal.SIGSTOP)
        try:
            await anyio.sleep(seconds)
        finally:
            if node.pid == pid:
                node.signal(signal.SIGCONT)

    return fault


def _network(shortest: float, longest: float, hurt: Callable[[Node, random.Random], None]) -> Fault:
    async def fault(target: Target) -> None:
        node = target.node
        seconds = target.lease * target.rng.uniform(shortest, longest)
        hurt(node, target.rng)
        try:
            await anyio.sleep(seconds)
        finally:
            node.proxy.heal()

    return fault


def _cut(node: Node, _: random.Random) -> None:
    node.proxy.cut()


def _block(node: Node, rng: random.Random) -> None:
    node.proxy.block(*rng.choice((("up",), ("down",), ("up", "down"))))


def _slow(node: Node, rng: random.Random) -> None:
    node.proxy.delay = rng.uniform(0.02, 0.2)


async def worker_killed(target: Target) -> int:
    """Gives the process that was killed."""
    worker = target.worker
    pid = worker.pid
    worker.signal(signal.SIGKILL)
    return pid


async def tool_killed(target: Target) -> None:
    tools = [tool for node in target.cluster.workers for tool in node.tools()]
    if tools:
        with contextlib.suppress(psutil.Error):
            target.rng.choice(tools).kill()


async def server_killed(target: Target) -> None:
    async with target.server_lock:
        target.cluster.server.signal(signal.SIGKILL)
        await anyio.sleep(target.rng.uniform(0.2, 0.5) * target.lease)
        await target.cluster.server.is_back()


async def message_published_again(target: Target) -> None:
    """A lane hands out a job that somebody has already, with a record from long ago."""
    job_id = target.recent()
    entry = await target.bus.store.find(job_id) if job_id else None
    if entry is None or entry.record.spec is None:
        return
    record = msgspec.structs.replace(entry.record, state=State.QUEUED, lease=None, result=None)
    subject = target.bus.grammar.job(record.pool, record.lane, record.priority, record.job_id)
    message = LaneMessage(revision=entry.revision - 1, record=record, lease_seconds=target.lease)
    await target.bus.connection.publish(subject, msgspec.json.encode(message))


async def acknowledged_by_an_outsider(target: Target) -> None:
    """A late acknowledgement of somebody who lost the job removes the message of the one who has it."""
    job_id = target.recent()
    entry = await target.bus.store.find(job_id) if job_id else None
    if entry is None:
        return
    topology, record = target.bus.topology, entry.record
    subject = target.bus.grammar.job(record.pool, record.lane, record.priority, record.job_id)
    message = await target.bus.connection.get_last(topology.jobs_stream, subject)
    if message is not None:
        consumer = topology.lane_consumer(record.pool, record.lane, record.priority).durable_name
        ack = f"$JS.ACK.{topology.jobs_stream}.{consumer}.1.{message.seq}.1.1.0"
        answer = target.rng.choice((b"+ACK", b"-NAK", b"+TERM"))
        await target.bus.connection.publish_unconfirmed(ack, answer)


async def submitted_again(target: Target) -> None:
    job_id = target.recent()
    if job_id:
        await target.bus.submit(target.jobs[job_id])


async def cancelled(target: Target) -> None:
    job_id = target.recent()
    if job_id:
        await target.bus.cancel(job_id, "chaos")


async def poisoned(target: Target) -> None:
    body = target.rng.choice(POISON)
    grammar = target.bus.grammar
    subjects = (
        grammar.command("mallory", target.rng.choice(list(Verb)), f"poison-{target.rng.randrange(10**6)}"),
        f"{grammar.root}.commands.mallory.explode.poison",
        grammar.job("default", "op-chaos", 5, f"poison-{target.rng.randrange(10**6)}"),
    )
    await target.bus.connection.publish(target.rng.choice(subjects), body)


async def consumer_deleted(target: Target) -> None:
    topology = target.bus.topology
    consumer = topology.lane_consumer("default", "op-chaos", target.rng.choice((3, 5))).durable_name
    with contextlib.suppress(KeyError):
        await target.bus.connection.api(f"CONSUMER.DELETE.{topology.jobs_stream}.{consumer}")


async def lanes_purged(target: Target) -> None:
    await target.bus.connection.api(f"STREAM.PURGE.{target.bus.topology.jobs_stream}", {})


async def store_full(target: Target) -> None:
    """The jobs bucket takes no more for a while."""
    name = target.bus.topology.bucket_stream(target.bus.topology.jobs_bucket)
    api = target.bus.connection.api
    info: dict[str, Any] = await api(f"STREAM.INFO.{name}")
    await api(f"STREAM.UPDATE.{name}", {**info["config"], "max_bytes": info["state"]["bytes"] + 1})
    try:
        await anyio.sleep(target.lease * target.rng.uniform(0.1, 0.4))
    finally:
        with anyio.CancelScope(shield=True):
            await insist(lambda: api(f"STREAM.UPDATE.{name}", {**info["config"], "max_bytes": -1}))


async def disk_full(target: Target) -> None:
    """The small filesystem, where some outputs go, has no room for a while."""
    small = target.place / "small"
    # Without its own filesystem it would be the machine's that is filled.
    if not small.is_mount():
        raise RuntimeError(f"{small} is no filesystem of its own")
    ballast = small / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
    await anyio.sleep(target.rng.uniform(0.2, 1.0))
    ballast.unlink(missing_ok=True)


async def scratch_removed(target: Target) -> None:
    """Somebody tidies up where an attempt is at work. What has been published is known from there alone."""
    for scratch in sorted((target.place / "out").glob(".h2kbus-*")):
        manifest = scratch / MANIFEST
        if not manifest.exists() or not manifest.stat().st_size:
            shutil.rmtree(scratch, ignore_errors=True)
            return


def _crash(point: str) -> Fault:
    """A node that comes back and, before long, dies between two steps."""

    async def fault(target: Target) -> None:
        node = target.scheduler if point in SCHEDULER_POINTS else target.worker
        node.crash_point = f"{point}:{target.rng.randrange(1, 8)}"
        node.signal(signal.SIGKILL)

    return fault


async def clock_stepped(target: Target) -> None:
    node = target.node
    node.clock = target.rng.choice(("+1h", "-1h", "+3d"))
    node.signal(signal.SIGKILL)


async def insist(step: Callable[[], Awaitable[object]]) -> None:
    """Repeat what has to happen in the end."""
    while True:
        try:
            await step()
        except (H2KBusError, KeyError):
            await anyio.sleep(0.2)
        else:
            return


FAULTS: dict[str, Fault] = {
    "worker killed": worker_killed,
    "worker drained": _signal("worker", signal.SIGTERM),
    "worker suspended for longer than its lease": _suspend("worker", 1.1, 1.6),
    "worker suspended for a moment": _suspend("worker", 0.1, 0.5),
    "tool killed": tool_killed,
    "scheduler killed": _signal("scheduler", signal.SIGKILL),
    "scheduler drained": _signal("scheduler", signal.SIGTERM),
    "scheduler suspended": _suspend("scheduler", 0.3, 1.5),
    "server killed": server_killed,
    "network cut for a moment": _network(0.1, 0.5, _cut),
    "network cut for longer than a lease": _network(1.1, 1.6, _cut),
    "network swallows everything": _network(0.2, 1.5, _block),
    "network slow": _network(0.5, 1.0, _slow),
    "message published again": message_published_again,
    "acknowledged by an outsider": acknowledged_by_an_outsider,
    "submitted again": submitted_again,
    "cancelled": cancelled,
    "poisoned": poisoned,
    "consumer deleted": consumer_deleted,
    "lanes purged": lanes_purged,
    "store full": store_full,
    "disk full": disk_full,
    "scratch directory removed": scratch_removed,
    **{f"crash {point}": _crash(point) for point in POINTS},
    **({"clock stepped": clock_stepped} if FAKETIME else {}),
}
