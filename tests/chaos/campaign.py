"""One campaign: a workload, faults from a seed, a time of calm, and the checker's verdict."""

import contextlib
import random
import secrets
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

import h2kbus
from h2kbus.client import Bus
from h2kbus.errors import BusError, H2KBusError
from h2kbus.settings import ConnectionSettings
from tests.chaos import ledger
from tests.chaos.checker import Evidence, Violation, check
from tests.chaos.cluster import Cluster, left_over, running_cluster
from tests.chaos.driver import Driver
from tests.chaos.evidence import files, gather, settled
from tests.chaos.history import History
from tests.chaos.nemesis import FAULTS, Target, worker_killed

FAULTS_AT_ONCE: Final = 3
SMALL_DISK: Final = "16m"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign does. The same plan has the same jobs and draws the same faults in the same order.

    `every` is the time between two faults, on average, and `calm` the time that the last jobs get to
    end after the last fault, both in seconds.
    """

    seed: int
    jobs: int
    faults: int
    lease: float = 4.0
    workers: int = 3
    every: float = 1.0
    calm: float = 90.0
    kinds: tuple[str, ...] = tuple(FAULTS)
    variant: str = "sound"


class Report(msgspec.Struct, kw_only=True):
    """What came of it. Recovery is in seconds: from a worker's kill -9 until each job that it held had
    begun elsewhere or had ended, and from the server's return until the next execution began.
    """

    plan: Plan
    seconds: float = 0.0
    ended: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    executions: int = 0
    violations: list[Violation] = []
    after_kill: list[float] = []
    after_server: list[float] = []


Kills = dict[str, list[tuple[float, int]]]
"""Moments (monotonic) and process ids, by the kind of fault."""


async def run(plan: Plan, place: Path, *, say: Any = lambda _: None) -> Report:
    """Run a campaign in an empty directory."""
    began = time.monotonic()
    report = Report(
        plan=plan, ended=Counter(), faults=Counter(), violations=[], after_kill=[], after_server=[]
    )
    root = f"c{secrets.token_hex(4)}.v1"
    (place / "out").mkdir(parents=True)
    with _small_disk(place / "small"):
        async with running_cluster(
            place, root, lease=plan.lease, workers=plan.workers, variant=plan.variant
        ) as cluster:
            settings = ConnectionSettings(url=cluster.url, root=root)
            async with h2kbus.connect(settings=settings, submitter="chaos") as bus:
                await _ready(bus, plan.workers)
                target = Target(cluster, bus, place, random.Random(plan.seed + 1), plan.lease)
                with History(place / "history.jsonl") as history:
                    driver = Driver(bus, place, history, random.Random(plan.seed))
                    target.jobs = driver.accepted
                    kills = await _storm(plan, target, driver, report, history, say)
                evidence = await _calm(plan, cluster, bus, driver, place)
        evidence = msgspec.structs.replace(evidence, left_over=[*evidence.left_over, *left_over(place)])
        report.violations = check(msgspec.structs.replace(evidence, files=files(place)))
    lines = evidence.ledger
    report.executions = sum(line.event == "start" for line in lines)
    report.ended = Counter(str(record.state) for record in evidence.records.values())
    report.after_kill = list(_after_kill(kills["worker killed"], lines, driver.changed))
    report.after_server = list(_after_server(kills["server killed"], lines))
    report.seconds = time.monotonic() - began
    return report


async def _storm(
    plan: Plan, target: Target, driver: Driver, report: Report, history: History, say: Any
) -> Kills:
    """Jobs and faults side by side, until all of both have been given."""
    kills: Kills = {"worker killed": [], "server killed": []}
    room = anyio.Semaphore(FAULTS_AT_ONCE)
    # Its own source of chance: what faults draw while they run depends on the timing.
    draw = random.Random(plan.seed + 2)

    async def inflict(kind: str) -> None:
        async with room:
            history.note("invoke", kind)
            try:
                await _inflict(kind, target, kills)
            except H2KBusError as error:
                history.note("unknown", kind, error=str(error))
            else:
                history.note("ok", kind)

    async with anyio.create_task_group() as outer:
        outer.start_soon(driver.listen)
        async with anyio.create_task_group() as group:
            # Spread over the storm, so that no fault hits an idle fleet.
            group.start_soon(driver.submit_all, plan.jobs, 0.9 * plan.faults * plan.every)
            for number in range(plan.faults):
                await anyio.sleep(plan.every * draw.uniform(0.5, 1.5))
                kind = draw.choice(plan.kinds)
                report.faults[kind] += 1
                group.start_soon(inflict, kind)
                if number % 20 == 19:
                    say(f"{number + 1} faults, {len(driver.accepted)} jobs accepted, {len(driver.open)} open")
        for node in target.cluster.nodes:
            node.proxy.heal()
        with anyio.move_on_after(plan.calm):
            while driver.open:
                await anyio.sleep(0.1)
        outer.cancel_scope.cancel()
    return kills


async def _inflict(kind: str, target: Target, kills: Kills) -> None:
    """One fault; of those whose recovery is measured it notes the moment."""
    if kind == "worker killed":
        kills[kind].append((time.monotonic(), await worker_killed(target)))
        return
    await FAULTS[kind](target)
    if kind == "server killed":
        kills[kind].append((time.monotonic(), 0))


async def _calm(plan: Plan, cluster: Cluster, bus: Bus, driver: Driver, place: Path) -> Evidence:
    """Let everything settle, stop the fleet gently, and gather what is left."""
    await settled(bus, min(plan.calm, 30))
    for node in cluster.nodes:
        await node.stop()
    return await gather(bus, driver.accepted, place)


async def _ready(bus: Bus, workers: int) -> None:
    with anyio.fail_after(30):
        while True:
            with contextlib.suppress(BusError):
                if len(await bus.workers()) >= workers:
                    return
            await anyio.sleep(0.1)


def _after_kill(
    kills: Sequence[tuple[float, int]], lines: Sequence[ledger.Line], changed: dict[str, list[float]]
) -> Iterator[float]:
    """How long each job that a killed worker held went without: its next start, or its end."""
    for at, pid in kills:
        ended = {(line.job_id, line.token) for line in lines if line.event == "end" and line.at < at}
        for held in lines:
            if held.event != "start" or held.worker_pid != pid or held.at > at:
                continue
            if (held.job_id, held.token) in ended:
                continue
            later = [line.at for line in lines if line.job_id == held.job_id and line.event == "start"]
            moments = [each for each in (*later, *changed.get(held.job_id, [])) if each > at]
            if moments:
                yield min(moments) - at


def _after_server(returns: Sequence[tuple[float, int]], lines: Sequence[ledger.Line]) -> Iterator[float]:
    for at, _ in returns:
        later = [line.at for line in lines if line.event == "start" and line.at > at]
        if later:
            yield min(later) - at


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[None]:
    """A small filesystem that can be filled. Mounting it takes root."""
    place.mkdir(parents=True)
    argv = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(place)]
    subprocess.run(argv, check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=10)
