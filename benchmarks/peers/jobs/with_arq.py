"""arq: results are kept in Redis.

Its worker looks at the queue every 0.5 s and takes at most 100 jobs then: 200 a second at the most.
`poll_delay` and `queue_read_limit` are what its documentation has for that. `max_jobs` is its default.
"""

import asyncio
import sys
from typing import Any

import uvloop
from arq import create_pool, run_worker
from arq.connections import ArqRedis, RedisSettings

from benchmarks.peers.jobs.turn import POLL_SECONDS, PRODUCERS, SLOTS, URL, Stopwatch, numbers, require_all

QUEUE = "arq:queue"
RESULTS = "arq:result:*"
REDIS = RedisSettings.from_dsn(URL or "redis://127.0.0.1")


async def noop(_context: dict[str, Any], number: int) -> int:
    """Do nothing."""
    return number


class WorkerSettings:
    """What arq's worker reads."""

    functions = (noop,)
    redis_settings = REDIS
    max_jobs = SLOTS
    poll_delay = 0.01
    queue_read_limit = 1000
    handle_signals = True


async def main() -> None:
    """Submit with as many producers as the bare loop; a job leaves the queue when its result is stored."""
    warm_up, jobs = numbers()
    redis = await create_pool(REDIS)
    await run(redis, warm_up)
    watch = Stopwatch()
    await run(redis, jobs)
    watch.stop()
    done = [each async for each in redis.scan_iter(RESULTS, 1000)]
    require_all(len(done), warm_up + jobs)
    await redis.aclose()


async def run(redis: ArqRedis, jobs: int) -> None:
    """Submit so many and wait for their end."""
    left = iter(range(jobs))

    async def produce() -> None:
        for number in left:
            await redis.enqueue_job("noop", number)

    await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
    while await redis.zcard(QUEUE):  # noqa: ASYNC110 - only Redis knows
        await asyncio.sleep(POLL_SECONDS)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    if sys.argv[1] == "worker":
        run_worker(WorkerSettings)
    else:
        asyncio.run(main())
