"""What the pipeline is compared with: a loop that makes only the same durable writes.

For each job: create the record, publish to the lane; then, with as many jobs at once as the worker has
slots, two compare-and-sets and an acknowledgement. It uses nats-py as its documentation shows, in one
process, decides nothing, validates nothing and reports nothing.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import nats
from nats.aio.client import Client
from nats.js.client import JetStreamContext

from h2kbus.client import Bus
from h2kbus.provision import ensure_consumer
from h2kbus.settings import ConnectionSettings
from subjects.grammar import Grammar
from subjects.topology import Topology

POOL: Final = "bare"
PRODUCERS: Final = 64
# The sizes of the records as the pipeline writes them: created, claimed, completed.
CREATED, CLAIMED, COMPLETED = b"x" * 1500, b"x" * 1700, b"x" * 2200
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


async def bare_rate(bus: Bus, settings: ConnectionSettings, jobs: int, slots: int, run: int) -> float:
    """Jobs per second of the bare loop on the same streams of the same server."""
    topology = Topology(Grammar(settings.root))
    consumer = msgspec.structs.replace(
        topology.lane_consumer(POOL, "any", 5), priority_groups=msgspec.UNSET, priority_policy=msgspec.UNSET
    )
    await ensure_consumer(bus.connection, topology.jobs_stream, consumer)
    client: Client = await nats.connect(settings.url, token=settings.token)
    try:
        loop = _Loop(client.jetstream(), topology, [f"bare-{run}-{number}" for number in range(jobs)])
        began = time.perf_counter()
        await asyncio.gather(loop.consume(consumer.durable_name, slots), loop.produce())
        return jobs / (time.perf_counter() - began)
    finally:
        await client.close()


class _Loop:
    def __init__(self, jetstream: JetStreamContext, topology: Topology, names: list[str]) -> None:
        self._jetstream = jetstream
        self._topology = topology
        self._names = names
        self._revisions: dict[str, int] = {}

    async def produce(self) -> None:
        names = iter(self._names)
        await asyncio.gather(*(self._create(names) for _ in range(PRODUCERS)))

    async def consume(self, consumer: str, slots: int) -> None:
        pull = await self._jetstream.pull_subscribe_bind(consumer, self._topology.jobs_stream)
        left = len(self._names)
        while left:
            messages = await pull.fetch(slots, timeout=30)
            await asyncio.gather(*map(self._settle, messages))
            left -= len(messages)

    async def _create(self, names: Iterator[str]) -> None:
        for name in names:
            self._revisions[name] = await self._write(name, CREATED, 0)
            subject = self._topology.grammar.job(POOL, "any", 5, name)
            await self._jetstream.publish(subject, CREATED)

    async def _settle(self, message: Any) -> None:
        name = message.subject.rpartition(".")[2]
        claimed = await self._write(name, CLAIMED, self._revisions[name])
        await self._write(name, COMPLETED, claimed)
        await message.ack()

    async def _write(self, name: str, body: bytes, revision: int) -> int:
        ack = await self._jetstream.publish(
            self._topology.record_subject(name), body, headers={_EXPECTED: str(revision)}
        )
        return ack.seq
