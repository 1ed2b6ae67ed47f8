"""`python -m tests.scale`: prints a table for docs/scaling.md. It takes a while."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import anyio
import msgspec
import psutil
import typer

import h2kbus
from h2kbus.cli.output import print_line
from h2kbus.client import Bus
from h2kbus.connection import connect
from h2kbus.provision import provision
from h2kbus.pull import Delivery
from h2kbus.settings import ConnectionSettings
from scheduler.lanes import LaneRegistry
from subjects.grammar import Grammar
from subjects.spec import JobSpec
from subjects.topology import Topology
from tests.conftest import REPOSITORY, environment, rehearsal
from tests.servers import start_server, wheel_server
from workers.pull import LanePuller

WATCHED_SECONDS: Final = 30.0
PRIORITIES: Final = (5, 7, 9)
URGENT: Final = 1
SAMPLE: Final = 300
MEBIBYTE: Final = 1 << 20


def main(
    jobs: Annotated[int, typer.Option(help="Jobs that wait.")] = 1_000_000,
    workers: Annotated[list[int] | None, typer.Option(help="Idle workers, one measurement each.")] = None,
    synced: Annotated[bool, typer.Option(help="Write every message to the disk at once.")] = False,
) -> None:
    """Measure, and print as it goes."""
    with tempfile.TemporaryDirectory(prefix="h2kbus-scale-") as directory:
        place = Path(directory)
        sync = {"sync_interval": "always"} if synced else {}
        config = {"jetstream": {"store_dir": str(place / "js"), **sync}}
        process, url = start_server(wheel_server(), place, config)
        try:
            server = Server(psutil.Process(process.pid), place / "js")
            anyio.run(_measure, url, server, jobs, workers or [1, 100, 1000])
        finally:
            process.kill()
            process.wait()


class Server(msgspec.Struct, frozen=True):
    """The server's process, and where its streams lie."""

    process: psutil.Process
    store: Path

    def disk_mebibytes(self) -> float:
        """What its streams occupy on the disk."""
        done = subprocess.run(
            ["du", "-sk", self.store], check=True, capture_output=True, text=True, timeout=60
        )
        return int(done.stdout.split()[0]) / 1024


async def _measure(url: str, server: Server, jobs: int, workers: list[int]) -> None:
    settings = ConnectionSettings(url=url)
    topology = Topology(Grammar(settings.root))
    async with connect(settings) as connection:
        await provision(connection, topology)
    await _report("nothing", server, 1)
    for count in workers:
        await _idle_workers(settings, topology, server, count)
    await _lanes(settings, topology, server)
    await _queue(settings, server, jobs)


async def _report(what: str, server: Server, seconds: float) -> None:
    """What the server costs while this goes on: its memory, its share of one core, and its disk."""
    before, began = server.process.cpu_times(), time.monotonic()
    await anyio.sleep(seconds)
    after, passed = server.process.cpu_times(), time.monotonic() - began
    share = (after.user + after.system - before.user - before.system) / passed
    memory, disk = server.process.memory_info().rss / MEBIBYTE, server.disk_mebibytes()
    print_line(f"{what}: nats-server {memory:.0f} MiB, {share:.1%} of a core, {disk:.0f} MiB on the disk")


async def _idle_workers(settings: ConnectionSettings, topology: Topology, server: Server, count: int) -> None:
    """Real workers in processes of 100, with nothing to do, on one lane."""
    async with connect(settings) as connection:
        registry = LaneRegistry(connection, topology)
        await registry.ensure("default", "qemu-img", 5)
    procs = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.scale.idle",
                settings.url,
                str(start),
                str(min(100, count - start)),
            ],
            cwd=REPOSITORY,
            env=environment(),
        )
        for start in range(0, count, 100)
    ]
    try:
        async with h2kbus.connect(settings=settings) as bus:
            with anyio.fail_after(120):
                while len(await bus.workers()) < count:
                    await anyio.sleep(0.5)
        await anyio.sleep(WATCHED_SECONDS)
        await _report(f"{count} idle workers", server, WATCHED_SECONDS)
    finally:
        for each in procs:
            each.kill()
            each.wait()


async def _lanes(settings: ConnectionSettings, topology: Topology, server: Server) -> None:
    async with connect(settings) as connection:
        registry = LaneRegistry(connection, topology)
        for number in range(200):
            await registry.ensure(f"pool-{number}", "qemu-img", 5)
    await _report("200 lanes more", server, WATCHED_SECONDS)


def _specs(count: int) -> Iterator[JobSpec]:
    for number in range(count):
        priority = PRIORITIES[number % len(PRIORITIES)]
        yield rehearsal(job_id=f"q{number}", policy={"priority": priority}, operation="inspect")


async def _queue(settings: ConnectionSettings, server: Server, jobs: int) -> None:
    argv = [sys.executable, "-m", "h2kbus", "--url", settings.url, "scheduler"]
    process = subprocess.Popen(argv, cwd=REPOSITORY, env=environment())
    scheduler = psutil.Process(process.pid)
    try:
        async with h2kbus.connect(settings=settings, submitter="scale") as bus:
            await _submit(bus, jobs)
            await _admitted(bus, jobs, scheduler)
            await _report(f"{jobs} jobs that wait", server, WATCHED_SECONDS)
            print_line(f"scheduler: {scheduler.memory_info().rss / MEBIBYTE:.0f} MiB")
            await _latencies(bus, settings.url)
            await _order(bus)
    finally:
        process.kill()
        process.wait()


async def _submit(bus: Bus, jobs: int) -> None:
    began = time.monotonic()
    count = 0
    async for _ in bus.submit_many(_specs(jobs)):
        count += 1
    passed = time.monotonic() - began
    print_line(f"{count} jobs submitted by one client in {passed:.1f} s: {count / passed:.0f}/s")


async def _admitted(bus: Bus, jobs: int, scheduler: psutil.Process) -> None:
    """Until every job lies in its lane; the scheduler's memory meanwhile."""
    began, most, told = time.monotonic(), 0.0, 0.0
    while True:
        most = max(most, scheduler.memory_info().rss / MEBIBYTE)
        waiting = sum(each.waiting for each in await bus.lane_loads())
        if waiting >= jobs:
            break
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print_line(f"  {waiting} in their lanes, scheduler {most:.0f} MiB")
        await anyio.sleep(1)
    passed = time.monotonic() - began
    print_line(f"all in their lanes {passed:.0f} s later; scheduler at most {most:.0f} MiB")


async def _latencies(bus: Bus, url: str) -> None:
    for name, call in (("status", lambda: bus.status("q77")), ("lanes", bus.lane_loads)):
        times = []
        for _ in range(20):
            began = time.monotonic()
            await call()
            times.append(time.monotonic() - began)
        middle, most = sorted(times)[10] * 1000, max(times) * 1000
        print_line(f"{name}: {middle:.1f} ms in the median, {most:.1f} ms at most")
    for words in (("status", "q77"), ("lanes",)):
        began = time.monotonic()
        argv = [sys.executable, "-m", "h2kbus", "--url", url, *words]
        subprocess.run(argv, check=True, capture_output=True, cwd=REPOSITORY, env=environment())
        passed = (time.monotonic() - began) * 1000
        print_line(f"h2kbus {words[0]}: {passed:.0f} ms, the program's start included")


async def _order(bus: Bus) -> None:
    """Urgent jobs come after all others, and a worker gets them first, then those of the next lane."""
    specs = (
        rehearsal(job_id=f"u{number}", policy={"priority": URGENT}, operation="inspect")
        for number in range(SAMPLE)
    )
    ids = [each async for each in bus.submit_many(specs)]
    for job_id in ids:
        await bus.verdict(job_id)
    taken: list[Delivery] = []

    def accept(delivery: Delivery) -> bool:
        taken.append(delivery)
        return True

    puller = LanePuller(bus.connection, bus.topology, accept)
    lanes = await bus.lanes()
    served = sorted((lane for lane in lanes if lane.pool == "default"), key=lambda lane: lane.priority)
    await puller.open()
    puller.serve(tuple(served), frozenset({"qemu-img"}))
    while len(taken) < 2 * SAMPLE:
        await puller.fill(10)
    await puller.close()
    priorities = [bus.grammar.parse_job(each.subject).priority for each in taken]
    expected = [URGENT] * SAMPLE + [PRIORITIES[0]] * SAMPLE
    words = "in order" if priorities == expected else "NOT in order"
    print_line(f"{SAMPLE} urgent jobs that came last, and the {SAMPLE} next after them: {words}")


if __name__ == "__main__":
    typer.run(main)
