"""`python -m benchmarks.instructions [STEP...]`: processor instructions of the steps of a job's road.

Times are noisy, and counts are not: each step runs in a process of its own under valgrind, a few times and
many times, and the difference is divided. Needs valgrind.
"""

import asyncio
import datetime as dt
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Final

import msgspec
import typer
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

from h2kbus.cli.bench.fleet import noop_job
from h2kbus.cli.output import print_line, print_table
from h2kbus.wire import WireClient, WireParser
from subjects.codec import decode, encode
from subjects.events import milestone
from subjects.lifecycle import claimed, completed, created
from subjects.record import LaneMessage
from subjects.result import JobResult
from subjects.spec import JobSpec
from subjects.states import State

FEW: Final = 50
MANY: Final = 550
NAME: Final = "01jzzzzzzzzzzzzzzzzz"
CONFIRMED: Final = b'{"stream":"KV_h2k_jobs", "seq":123456}'
ACK: Final = b"MSG _INBOX.aaaaaaaaaaaaaaaaaaaaaa.1 1 %d\r\n%s\r\n" % (len(CONFIRMED), CONFIRMED)
NOW: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

Step = Callable[[int], Awaitable[None]]
"""Does one thing so many times."""

SPEC: Final = msgspec.structs.replace(noop_job(), job_id=NAME, created_at=NOW)
QUEUED: Final = created(SPEC, job_id=NAME, submitter="bench", lane="any", now=NOW, by="scheduler")
RUNNING: Final = claimed(QUEUED, worker_id="worker", revision=7, now=NOW)
RESULT: Final = JobResult(job_id=NAME, status=State.COMPLETED, completed_at=NOW, worker_id="worker")
WIRE_SPEC: Final = encode(SPEC)
WIRE_LANE: Final = encode(LaneMessage(revision=7, record=QUEUED))


def repeated(call: Callable[[], object]) -> Step:
    """A step of plain computing."""

    async def run(times: int) -> None:
        for _ in range(times):
            call()

    return run


class Offline(WireClient):
    """A client that looks connected, and keeps what it would send."""

    def __init__(self) -> None:
        super().__init__()
        self._status = Client.CONNECTED
        self._flush_queue = asyncio.Queue()
        self._flusher_task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))


async def _receive(client: Offline, parser: Parser, times: int) -> None:
    """As many messages together as a busy connection brings."""
    for _ in range(times // 10):
        await parser.parse(ACK * 10)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    if client._flusher_task is not None:
        client._flusher_task.cancel()


async def receive_by_the_client(times: int) -> None:
    """A queue and a task for the subscription."""

    async def take(_: Msg) -> None: ...

    client = Offline()
    subscription = Subscription(client, id=1, subject="_INBOX.>", cb=take)
    subscription._start(None)  # type: ignore[no-untyped-call] # the client leaves it untyped
    client._subs[1] = subscription
    await _receive(client, Parser(client), times)


async def receive_by_the_wire(times: int) -> None:
    """A plain function for each message."""
    client = Offline()
    client.handlers[1] = lambda _: None
    await _receive(client, WireParser(client), times)


def _publish(publish: Callable[..., Awaitable[None]]) -> Step:
    async def run(times: int) -> None:
        client, headers = Offline(), {"Nats-Expected-Last-Subject-Sequence": "7"}
        for _ in range(times):
            await publish(client, f"$KV.h2k_jobs.{NAME}", WIRE_LANE, "_INBOX.a.1", headers)
            client._pending.clear()
            client._pending_data_size = 0
        if client._flusher_task is not None:
            client._flusher_task.cancel()

    return run


STEPS: Final[Mapping[str, Step]] = {
    "receive, the client's way": receive_by_the_client,
    "receive": receive_by_the_wire,
    "publish, the client's way": _publish(Client.publish),
    "publish": _publish(WireClient.publish),
    "read a job": repeated(lambda: decode(JobSpec, WIRE_SPEC)),
    "make its record": repeated(
        lambda: created(SPEC, job_id=NAME, submitter="bench", lane="any", now=NOW, by="scheduler")
    ),
    "write its record": repeated(lambda: encode(QUEUED)),
    "read its lane's message": repeated(lambda: decode(LaneMessage, WIRE_LANE)),
    "claim it": repeated(lambda: claimed(QUEUED, worker_id="worker", revision=7, now=NOW)),
    "complete it": repeated(lambda: completed(RUNNING, RESULT, now=NOW)),
    "tell of it": repeated(lambda: encode(milestone(RUNNING, 8))),
}


def main(
    steps: Annotated[list[str] | None, typer.Argument(help=f"Of: {', '.join(STEPS)}. [all]")] = None,
    times: Annotated[int, typer.Option(hidden=True, help="Run the one step, instead of counting.")] = 0,
) -> None:
    """Count the instructions of each step, in thousands."""
    chosen = steps or list(STEPS)
    unknown = [each for each in chosen if each not in STEPS]
    if unknown:
        raise typer.BadParameter(f"there is no step {unknown[0]!r}; there are: {', '.join(STEPS)}")
    if times:
        asyncio.run(_run(STEPS[chosen[0]], times))
        return
    if shutil.which("valgrind") is None:
        print_line("valgrind counts the instructions, and it is not installed")
        raise typer.Exit(1)
    print_table(("step", "thousand instructions"), [(each, f"{_cost(each):.1f}") for each in chosen])


async def _run(step: Step, times: int) -> None:
    await step(times)


def _cost(step: str) -> float:
    return (_counted(step, MANY) - _counted(step, FEW)) / (MANY - FEW) / 1000


def _counted(step: str, times: int) -> int:
    """Instructions of a whole process; hashes are not random in it, so that the same is done each time."""
    argv = [sys.executable, "-m", __spec__.name, "--times", str(times), step]
    counter = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    run = subprocess.run([*counter, *argv], capture_output=True, text=True, check=True, env=environment)
    found = re.search(r"Collected : (\d+)", run.stderr)
    if found is None:
        raise RuntimeError(f"valgrind counted nothing: {run.stderr[-500:]}")
    return int(found[1])


if __name__ == "__main__":
    typer.run(main)
