"""dramatiq: its Redis broker, with the results backend on."""

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers.jobs.turn import URL, Stopwatch, numbers, require_all

RESULTS_URL = f"{URL}/1"

broker = RedisBroker(url=f"{URL}/0")
broker.add_middleware(Results(backend=RedisBackend(url=RESULTS_URL)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def noop(number: int) -> int:
    """Do nothing."""
    return number


def main() -> None:
    """Send one by one; a message leaves its queue after its result was stored."""
    warm_up, jobs = numbers()
    run(warm_up)
    watch = Stopwatch()
    run(jobs)
    watch.stop()
    require_all(redis.Redis.from_url(RESULTS_URL).dbsize(), warm_up + jobs)


def run(jobs: int) -> None:
    """Submit so many and wait for their end."""
    for number in range(jobs):
        noop.send(number)
    broker.join(noop.queue_name, interval=20, timeout=300_000)


if __name__ == "__main__":
    main()
