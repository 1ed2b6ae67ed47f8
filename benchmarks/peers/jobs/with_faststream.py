"""FastStream on JetStream: no state of a job is kept, and no results."""

import asyncio

import uvloop
from faststream import FastStream
from faststream.nats import JStream, NatsBroker, PullSub
from nats.js import JetStreamContext

from benchmarks.peers.jobs.consumed import until_consumed, until_ready
from benchmarks.peers.jobs.turn import PRODUCERS, SLOTS, URL, Stopwatch, numbers

STREAM, CONSUMER, SUBJECT = "jobs", "worker", "jobs.noop"

broker = NatsBroker(URL, logger=None)
app = FastStream(broker, logger=None)


@broker.subscriber(
    SUBJECT, stream=JStream(STREAM), durable=CONSUMER, pull_sub=PullSub(batch_size=SLOTS), max_workers=SLOTS
)
async def noop(number: int) -> None:
    """Do nothing."""


async def main() -> None:
    """Publish with as many producers as the bare loop, until all is acknowledged."""
    warm_up, jobs = numbers()
    await broker.connect()
    jetstream = broker.connection.jetstream()
    await until_ready(jetstream, STREAM, CONSUMER)
    await run(jetstream, warm_up, warm_up)
    watch = Stopwatch()
    await run(jetstream, jobs, warm_up + jobs)
    watch.stop()
    await broker.stop()


async def run(jetstream: JetStreamContext, jobs: int, expected: int) -> None:
    """Submit so many and wait for their end."""
    left = iter(range(jobs))

    async def produce() -> None:
        for number in left:
            await broker.publish(number, SUBJECT, stream=STREAM)

    await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
    await until_consumed(jetstream, STREAM, CONSUMER, expected)


if __name__ == "__main__":
    uvloop.run(main())
