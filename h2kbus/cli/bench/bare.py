"""What the pipeline is compared with: loops that make only durable writes.

The short one, for each job: create the record, publish to the lane; then, with as many jobs at once as the
worker has slots, two compare-and-sets and an acknowledgement. The other one makes every write that the
pipeline makes: the command and three events as well. Both use nats-py as its documentation shows, in one
process, decide nothing, validate nothing and read no message.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

from h2kbus.client import Bus
from h2kbus.provision import ensure_consumer, provision
from h2kbus.settings import ConnectionSettings
from subjects.commands import Verb
from subjects.grammar import Grammar
from subjects.topology import Topology

Handler = Callable[[Msg], Awaitable[None]]

POOL: Final = "bare"
PRODUCERS: Final = 64
# The sizes of the records as the pipeline writes them: created, claimed, completed.
CREATED, CLAIMED, COMPLETED = b"x" * 1500, b"x" * 1700, b"x" * 2200
COMMAND, EVENT = b"x" * 700, b"x" * 250
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


async def bare_rate(
    bus: Bus, settings: ConnectionSettings, jobs: int, slots: int, run: int, *, every_write: bool = False
) -> float:
    """Jobs per second of a bare loop on the same server.

    It works on the pipeline's streams; with `every_write` on a second set of them, whose commands no
    scheduler takes.
    """
    fleet, loops = (f"{bus.grammar.fleet}-bare", _EveryWrite) if every_write else (bus.grammar.fleet, _Loop)
    topology = Topology(Grammar(f"{fleet}.v1"))
    if every_write:
        await provision(bus.connection, topology)
    consumer = msgspec.structs.replace(
        topology.lane_consumer(POOL, "any", 5), priority_groups=msgspec.UNSET, priority_policy=msgspec.UNSET
    )
    await ensure_consumer(bus.connection, topology.jobs_stream, consumer)
    client: Client = await nats.connect(settings.url, token=settings.token)
    try:
        loop = loops(client, topology, [f"bare-{run}-{number}" for number in range(jobs)])
        began = time.perf_counter()
        await asyncio.gather(loop.consume(consumer.durable_name, slots), loop.produce())
        return jobs / (time.perf_counter() - began)
    finally:
        await client.close()


class _Loop:
    """Three versions of the record and the lane's message."""

    def __init__(self, client: Client, topology: Topology, names: list[str]) -> None:
        self._client = client
        self._jetstream: JetStreamContext = client.jetstream()
        self._topology = topology
        self._names = names
        self._revisions: dict[str, int] = {}

    async def produce(self) -> None:
        names = iter(self._names)
        await asyncio.gather(*(self._submit(names) for _ in range(PRODUCERS)))

    async def consume(self, consumer: str, slots: int) -> None:
        await self._each(self._topology.jobs_stream, consumer, slots, self._settle)

    async def _each(self, stream: str, consumer: str, at_once: int, handle: Handler) -> None:
        pull = await self._jetstream.pull_subscribe_bind(consumer, stream)
        left = len(self._names)
        while left:
            messages = await pull.fetch(at_once, timeout=30)
            await asyncio.gather(*map(handle, messages))
            left -= len(messages)

    async def _submit(self, names: Iterator[str]) -> None:
        for name in names:
            await self._create(name)

    async def _create(self, name: str) -> None:
        self._revisions[name] = await self._write(name, CREATED, 0)
        subject = self._topology.grammar.job(POOL, "any", 5, name)
        await self._jetstream.publish(subject, CREATED)

    async def _settle(self, message: Msg) -> None:
        name = message.subject.rpartition(".")[2]
        claimed = await self._write(name, CLAIMED, self._revisions[name])
        await self._write(name, COMPLETED, claimed)
        await message.ack()

    async def _write(self, name: str, body: bytes, revision: int) -> int:
        ack = await self._jetstream.publish(
            self._topology.record_subject(name), body, headers={_EXPECTED: str(revision)}
        )
        return ack.seq


class _EveryWrite(_Loop):
    """The command and the events as well. Two of three events are not confirmed, as in the pipeline."""

    async def produce(self) -> None:
        consumer = self._topology.scheduler_consumer
        scheduling = self._each(self._topology.commands_stream, consumer, PRODUCERS, self._schedule)
        await asyncio.gather(super().produce(), scheduling)

    async def _submit(self, names: Iterator[str]) -> None:
        for name in names:
            subject = self._topology.grammar.command("bench", Verb.SUBMIT, name)
            await self._jetstream.publish(subject, COMMAND)

    async def _schedule(self, message: Msg) -> None:
        name = message.subject.rpartition(".")[2]
        await self._create(name)
        await self._client.publish(self._topology.grammar.progress(name), EVENT)
        await message.ack()

    async def _settle(self, message: Msg) -> None:
        name = message.subject.rpartition(".")[2]
        event = self._topology.grammar.progress(name)
        claimed = await self._write(name, CLAIMED, self._revisions[name])
        await self._client.publish(event, EVENT)
        await self._write(name, COMPLETED, claimed)
        await self._jetstream.publish(event, EVENT)
        await message.ack()
