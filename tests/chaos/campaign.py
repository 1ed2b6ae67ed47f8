"""One campaign: a workload, faults from a seed, a time of calm, and the checker's verdict."""

import contextlib
import functools
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
from subjects.codec import decode
from subjects.events import ProgressEvent
from subjects.spec import JobSpec
from subjects.states import State
from tests.chaos import ledger, workload
from tests.chaos.checker import Evidence, Violation, check
from tests.chaos.cluster import Cluster, left_over, running_cluster
from tests.chaos.history import History
from tests.chaos.nemesis import FAULTS, Target, insist, worker_killed

IN_FLIGHT: Final = 60
"""Jobs that have not ended while new ones are submitted."""
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


class _Driver:
    """Submits the jobs and hears how they end."""

    def __init__(self, plan: Plan, target: Target, place: Path, history: History) -> None:
        self._history = history
        self.accepted: dict[str, JobSpec] = {}
        self.changed: dict[str, list[float]] = {}
        self.open: set[str] = set()
        self._plan = plan
        self._target = target
        self._place = place
        self._rng = random.Random(plan.seed)

    async def submit_all(self) -> None:
        # Spread over the storm, so that no fault hits an idle fleet.
        pause = 0.9 * self._plan.faults * self._plan.every / self._plan.jobs
        began = anyio.current_time()
        for number in range(self._plan.jobs):
            await anyio.sleep_until(began + number * pause)
            while len(self.open) >= IN_FLIGHT:
                await anyio.sleep(0.02)
            spec = workload.plan(self._rng, number, self._place)
            job_id = spec.job_id or ""
            self.open.add(job_id)
            self._history.note("invoke", "submit", job_id=job_id)
            await insist(functools.partial(self._target.bus.submit, spec))
            self._history.note("ok", "submit", job_id=job_id)
            self.accepted[job_id] = self._target.jobs[job_id] = spec

    async def listen(self) -> None:
        """Hear the live events; what is missed is made up for by looking from time to time."""
        bus = self._target.bus

        def on_event(message: Any) -> None:
            with contextlib.suppress(H2KBusError):
                event = decode(ProgressEvent, message.data)
                if event.state.terminal or event.state is State.RETRYING:
                    self.changed.setdefault(event.job_id, []).append(time.monotonic())
                if event.state.terminal:
                    self.open.discard(event.job_id)

        await bus.connection.listen(f"{bus.grammar.root}.progress.*", on_event)
        while True:
            await anyio.sleep(2)
            with contextlib.suppress(BusError):
                waiting = list(self.open & set(self.accepted))
                for entry in await bus.store.find_many(waiting):
                    if entry is not None and entry.record.state.terminal:
                        self.open.discard(entry.record.job_id)


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
                    driver = _Driver(plan, target, place, history)
                    kills = await _storm(plan, target, driver, report, history, say)
                evidence = await _calm(plan, cluster, bus, driver, place)
        evidence = msgspec.structs.replace(evidence, left_over=[*evidence.left_over, *left_over(place)])
        report.violations = check(msgspec.structs.replace(evidence, files=_files(place)))
    lines = evidence.ledger
    report.executions = sum(line.event == "start" for line in lines)
    report.ended = Counter(str(record.state) for record in evidence.records.values())
    report.after_kill = list(_after_kill(kills["worker killed"], lines, driver.changed))
    report.after_server = list(_after_server(kills["server killed"], lines))
    report.seconds = time.monotonic() - began
    return report


async def _storm(
    plan: Plan, target: Target, driver: _Driver, report: Report, history: History, say: Any
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
            group.start_soon(driver.submit_all)
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


async def _calm(plan: Plan, cluster: Cluster, bus: Bus, driver: _Driver, place: Path) -> Evidence:
    """Let everything settle, stop the fleet gently, and gather what is left."""
    with anyio.move_on_after(min(plan.calm, 30)):
        while await _queued(bus) or await _locks(bus):
            await anyio.sleep(0.2)
    for node in cluster.nodes:
        await node.stop()
    records = {entry.record.job_id: entry.record async for entry in bus.store.scan()}
    events: dict[str, list[ProgressEvent]] = {}
    topology = bus.topology
    async for stored in bus.connection.read(topology.progress_stream, f"{bus.grammar.root}.progress.*"):
        event = decode(ProgressEvent, stored.data)
        events.setdefault(event.job_id, []).append(event)
    left = [f"message {subject}" for subject in await _queued(bus)]
    left += [f"lock {each}" for each in await _locks(bus)]
    left += [f"scratch {each}" for each in place.glob("*/.h2kbus-*")]
    return Evidence(
        accepted=driver.accepted,
        records=records,
        events=events,
        ledger=ledger.read(place / "ledger.jsonl"),
        left_over=left,
    )


async def _queued(bus: Bus) -> list[str]:
    """What lies in the command and job streams."""
    found: list[str] = []
    for stream in (bus.topology.jobs_stream, bus.topology.commands_stream):
        info = await bus.connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
        found += info["state"].get("subjects") or {}
    return found


async def _locks(bus: Bus) -> list[str]:
    stream = bus.topology.bucket_stream(bus.topology.locks_bucket)
    read = bus.connection.read(stream, bus.topology.lock_subject("*"))
    return [stored.data.decode() async for stored in read if stored.data]


async def _ready(bus: Bus, workers: int) -> None:
    with anyio.fail_after(30):
        while True:
            with contextlib.suppress(BusError):
                if len(await bus.workers()) >= workers:
                    return
            await anyio.sleep(0.1)


def _files(place: Path) -> dict[str, bytes]:
    return {
        str(file): file.read_bytes()
        for name in ("out", "small")
        for file in (place / name).iterdir()
        if file.is_file() and not file.name.endswith(".log")
    }


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
