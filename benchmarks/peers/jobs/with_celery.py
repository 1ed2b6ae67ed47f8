"""Celery: Redis as broker and as result backend.

A long prefetch, as its guide to optimising advises for short tasks.
"""

import redis
from celery import Celery

from benchmarks.peers.jobs.turn import URL, Stopwatch, numbers, require_all, wait_until

RESULTS_URL = f"{URL}/1"

app = Celery("peers", broker=f"{URL}/0", backend=RESULTS_URL)
app.conf.worker_prefetch_multiplier = 64


@app.task
def noop(number: int) -> int:
    """Do nothing."""
    return number


def main() -> None:
    """Send one by one; a key of the second database is a result."""
    warm_up, jobs = numbers()
    results = redis.Redis.from_url(RESULTS_URL)
    run(results, warm_up, warm_up)
    watch = Stopwatch()
    run(results, jobs, warm_up + jobs)
    watch.stop()
    require_all(results.dbsize(), warm_up + jobs)


def run(results: redis.Redis, jobs: int, expected: int) -> None:
    """Submit so many and wait for their end."""
    for number in range(jobs):
        noop.delay(number)
    wait_until(lambda: results.dbsize() >= expected)


if __name__ == "__main__":
    main()
