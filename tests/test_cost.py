"""What a job costs the bus, counted: times are noisy, and messages are not."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio
import pytest
from nats.aio.msg import Msg

from h2kbus.client import Bus
from h2kbus.connection import connect
from h2kbus.settings import ConnectionSettings
from scheduler.duties import LONGEST_PAUSE_SECONDS
from subjects.states import State
from subjects.topology import Topology
from tests.conftest import Fleet, rehearsal

pytestmark = pytest.mark.anyio

MESSAGES: Final = {
    # What is stored: eight messages. Two of them are delivered as well.
    "command": 2,
    "record": 3,
    "lane": 2,
    "event": 3,
    # Confirmations: of everything but the two events that the next write makes up for.
    "confirmed": 6,
    # Two queues are told that their message is done with.
    "done": 2,
}
"""Of a job that does nothing, on its way from a submission to COMPLETED."""
LARGEST: Final = {"command": 800, "record": 2300, "lane": 1700, "event": 300}
"""Bytes of the largest message of each kind, for a job of ordinary size."""


class Tap:
    """Everything that goes over the account, by what it is."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        streams = (
            topology.commands_stream,
            topology.bucket_stream(topology.jobs_bucket),
            topology.jobs_stream,
            topology.progress_stream,
        )
        self._confirmations = tuple(f'{{"stream":"{each}"'.encode() for each in streams)
        self.counted: Counter[str] = Counter()
        self.largest: Counter[str] = Counter()
        self.looked_up: list[str] = []

    def hear(self, message: Msg) -> None:
        kind = self._kind(message)
        self.counted[kind] += 1
        self.largest[kind] = max(self.largest[kind], len(message.data))
        if kind == "look-up":
            self.looked_up.append(message.subject)

    def _kind(self, message: Msg) -> str:
        topology, root = self._topology, self._topology.grammar.root
        starts = {
            f"{root}.commands.": "command",
            f"$KV.{topology.jobs_bucket}.": "record",
            f"{root}.jobs.": "lane",
            f"{root}.progress.": "event",
            "$JS.ACK.": "done",
            "$JS.API.DIRECT.GET.": "look-up",
        }
        if message.reply.startswith(f"$JS.ACK.{topology.bucket_stream(topology.jobs_bucket)}."):
            return "followed"
        for start, kind in starts.items():
            if message.subject.startswith(start):
                return kind
        return "confirmed" if message.data.startswith(self._confirmations) else "other"


@contextlib.asynccontextmanager
async def tapped(settings: ConnectionSettings, topology: Topology) -> AsyncIterator[Tap]:
    """Hears what the server passes on; the server's own acknowledgements of a tap are not part of it."""
    tap = Tap(topology)
    async with connect(settings) as connection:
        await connection.listen(">", tap.hear)
        yield tap


async def run(bus: Bus, jobs: int, tap: Tap) -> None:
    """Submit jobs one by one, each after the end of the one before; nobody asks the bus about them."""
    for number in range(jobs):
        await bus.submit(rehearsal())
        await until(lambda: tap.counted["done"] >= 2 * (number + 1))  # noqa: B023 - called at once


async def until(reached: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not reached():
            await anyio.sleep(0.005)


@pytest.mark.slow
async def test_job_costs_eight_stored_messages_and_no_look_up(
    running: Fleet, bus: Bus, settings: ConnectionSettings
) -> None:
    # The first job makes its lane.
    assert (await bus.result(await bus.submit(rehearsal()))).state is State.COMPLETED
    jobs = 20
    async with tapped(settings, running.topology) as tap:
        await run(bus, jobs, tap)
        # A scheduler's round of duties comes by as well.
        await anyio.sleep(LONGEST_PAUSE_SECONDS + 0.5)
    per_job = {kind: tap.counted[kind] / jobs for kind in MESSAGES}
    assert per_job == MESSAGES
    assert not [subject for subject in tap.looked_up if f"KV_{running.topology.jobs_bucket}" in subject]
    # The scheduler is given each record as it is when it asks, which is once in a round of duties.
    assert jobs <= tap.counted["followed"] <= MESSAGES["record"] * jobs


async def test_messages_of_a_job_are_small(running: Fleet, bus: Bus, settings: ConnectionSettings) -> None:
    async with tapped(settings, running.topology) as tap:
        await run(bus, 3, tap)
    assert {kind: size for kind, size in tap.largest.items() if size > LARGEST.get(kind, 10_000)} == {}


@pytest.mark.slow
async def test_cost_does_not_grow_with_what_was_done_before(
    running: Fleet, bus: Bus, settings: ConnectionSettings
) -> None:
    counts = []
    for jobs in (30, 30, 30):
        async with tapped(settings, running.topology) as tap:
            await run(bus, jobs, tap)
            await anyio.sleep(0.2)
        counts.append({kind: tap.counted[kind] for kind in MESSAGES})
    assert counts[0]["record"] == 90
    assert counts == [counts[0]] * 3
