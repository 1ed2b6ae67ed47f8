"""taskiq with the JetStream broker of taskiq-nats: no state of a job is kept, and no results."""

import asyncio

import uvloop
from taskiq_nats import PullBasedJetStreamBroker

from benchmarks.peers.jobs.consumed import until_consumed
from benchmarks.peers.jobs.turn import PRODUCERS, SLOTS, URL, Stopwatch, numbers

STREAM, CONSUMER = "taskiq_jetstream", "taskiq_durable"

broker = PullBasedJetStreamBroker(
    URL, stream_name=STREAM, durable=CONSUMER, pull_consume_batch=SLOTS, pull_consume_timeout=5
)


@broker.task
async def noop(number: int) -> int:
    """Do nothing."""
    return number


async def main() -> None:
    """Submit with as many producers as the bare loop, until all is acknowledged."""
    warm_up, jobs = numbers()
    await broker.startup()
    await run(warm_up, warm_up)
    watch = Stopwatch()
    await run(jobs, warm_up + jobs)
    watch.stop()
    await broker.shutdown()


async def run(jobs: int, expected: int) -> None:
    """Submit so many and wait for their end."""
    left = iter(range(jobs))

    async def produce() -> None:
        for number in left:
            await noop.kiq(number)

    await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
    await until_consumed(broker.js, STREAM, CONSUMER, expected)


if __name__ == "__main__":
    uvloop.run(main())
