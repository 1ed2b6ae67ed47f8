"""How the end is seen where no results are kept: every message is acknowledged."""

import asyncio
import contextlib

from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from benchmarks.peers.jobs.turn import DEADLINE_SECONDS, POLL_SECONDS


async def until_ready(jetstream: JetStreamContext, stream: str, consumer: str) -> None:
    """Wait for the worker to have made the stream and its consumer."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            with contextlib.suppress(NotFoundError):
                await jetstream.consumer_info(stream, consumer)
                return
            await asyncio.sleep(POLL_SECONDS)


async def until_consumed(jetstream: JetStreamContext, stream: str, consumer: str, expected: int) -> None:
    """Wait for `expected` acknowledgements in all."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            info = await jetstream.consumer_info(stream, consumer)
            if info.ack_floor.stream_seq >= expected:
                return
            await asyncio.sleep(POLL_SECONDS)
