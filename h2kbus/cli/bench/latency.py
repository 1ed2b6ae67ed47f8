"""How long people wait on an idle bus: for a start, for a word, and for a stop.

All of it is seen from outside: by a client, by a plain NATS client, and by the kernel.
"""

import datetime as dt
import math
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import anyio
import msgspec
import nats
import psutil
from nats.aio.msg import Msg

from h2kbus.cli.bench.fleet import NOOP, PACED, SLOTS, Fleet, noop_job, running_fleet
from h2kbus.cli.bench.paced import STEPS, TOOL
from h2kbus.watch import EventFeed
from subjects.codec import decode
from subjects.events import ProgressEvent
from subjects.states import State

Found = TypeVar("Found")

JOBS: Final = 200
PAUSE_SECONDS: Final = 0.03
WARM_UP: Final = 20
CANCELLED_SHARE: Final = 4
"""Of so many jobs one is cancelled: a tool has to start first."""
LOOK_SECONDS: Final = 0.01
DEADLINE_SECONDS: Final = 60.0


class Goal(msgspec.Struct, frozen=True):
    """What is wanted, in milliseconds; None where nothing is."""

    p50_ms: float | None = None
    p99_ms: float | None = None


NONE: Final = Goal()
START: Final = Goal(p50_ms=3, p99_ms=10)
WORD: Final = Goal(p99_ms=5)
STOP: Final = Goal(p99_ms=500)


async def measure(jobs: int | None = None) -> dict[str, Any]:
    """With every write synced, as the embedded server does by default; a start also without that."""
    count = jobs or JOBS
    async with running_fleet(sync_always=False) as fleet:
        unsynced = await _starts(fleet, count)
    async with running_fleet(sync_always=True, operations=(NOOP, *PACED)) as fleet:
        starts = await _starts(fleet, count)
        words = await _words(fleet, max(count // STEPS, 1))
        stops = [await _stop(fleet) for _ in range(max(count // CANCELLED_SHARE, 1))]
    return {
        "submit_call_to_running": figures([whole for whole, _ in starts], START),
        "submit_return_to_running": figures([rest for _, rest in starts]),
        "unsynced_submit_call_to_running": figures([whole for whole, _ in unsynced], START),
        "unsynced_submit_return_to_running": figures([rest for _, rest in unsynced]),
        "event_to_foreign_subscriber": figures(words, WORD),
        "cancel_call_to_process_dead": figures(stops, STOP),
    }


def figures(seconds: Sequence[float], goal: Goal = NONE) -> dict[str, Any]:
    """Percentiles in milliseconds (the nearest rank), beside what is wanted."""
    milliseconds = sorted(each * 1000 for each in seconds)
    found: dict[str, Any] = {
        "p50_ms": round(statistics.median(milliseconds), 2),
        "p99_ms": round(milliseconds[math.ceil(len(milliseconds) * 0.99) - 1], 2),
    }
    wanted = msgspec.structs.asdict(goal)
    missed = [name for name, most in wanted.items() if most is not None and found[name] > most]
    return {
        **found,
        "max_ms": round(milliseconds[-1], 2),
        "samples": len(milliseconds),
        **{f"wanted_{name}": value for name, value in wanted.items()},
        "met": not missed if goal != NONE else None,
    }


async def _starts(fleet: Fleet, count: int) -> list[tuple[float, float]]:
    return [await _pick_up(fleet) for _ in range(count + WARM_UP)][WARM_UP:]


async def _pick_up(fleet: Fleet) -> tuple[float, float]:
    """Seconds until the client hears of RUNNING: since it called submit, and since that returned."""
    bus = fleet.bus
    await anyio.sleep(PAUSE_SECONDS)
    async with EventFeed(bus.connection, bus.topology, "*").open() as events:
        called = time.perf_counter()
        job_id = await bus.submit(noop_job())
        submitted = time.perf_counter()
        running = None
        while True:
            event = await events.receive()
            if event.job_id != job_id:
                continue
            if event.state is State.RUNNING:
                running = time.perf_counter()
            if event.state.terminal:
                seen = running or time.perf_counter()
                return seen - called, max(seen - submitted, 0.0)


async def _words(fleet: Fleet, jobs: int) -> list[float]:
    """Seconds from the worker's writing an event to a plain NATS client's having it: they share a clock."""
    seconds: list[float] = []

    async def on_message(message: Msg) -> None:
        now = dt.datetime.now(dt.UTC)
        event = decode(ProgressEvent, message.data)
        if event.state is State.PROGRESSING:
            seconds.append((now - event.timestamp).total_seconds())

    client = await nats.connect(fleet.settings.url, token=fleet.settings.token)
    try:
        await client.subscribe(fleet.bus.grammar.progress_of_all(), cb=on_message)
        await client.flush()
        for began in range(0, jobs, SLOTS):
            ids = [await fleet.bus.submit(noop_job("speak")) for _ in range(min(SLOTS, jobs - began))]
            for job_id in ids:
                await fleet.bus.result(job_id, check=True)
        await client.flush()
    finally:
        await client.close()
    return seconds


async def _stop(fleet: Fleet) -> float:
    """Seconds from calling cancel to the death of the job's qemu-img, as the kernel tells it."""
    job_id = await fleet.bus.submit(noop_job("hold", output=str(fleet.place / "out")))
    tool = await _within(lambda: _tool_of(fleet))
    descriptor = os.pidfd_open(tool)
    try:
        called = time.perf_counter()
        await fleet.bus.cancel(job_id)
        await _within(lambda: anyio.wait_readable(descriptor))
        seconds = time.perf_counter() - called
    finally:
        os.close(descriptor)
    await fleet.bus.result(job_id)
    return seconds


async def _tool_of(fleet: Fleet) -> int:
    """The process that is qemu-img itself, not one that makes its sandbox, once it runs."""
    while True:
        for each in fleet.worker.children(recursive=True):
            # It may have become another program, or none, since it was listed.
            try:
                if each.name() == TOOL:
                    return int(each.pid)
            except psutil.Error:
                continue
        await anyio.sleep(LOOK_SECONDS)


async def _within(wait: Callable[[], Awaitable[Found]]) -> Found:
    with anyio.fail_after(DEADLINE_SECONDS):
        return await wait()
