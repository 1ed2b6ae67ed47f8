"""The command that says which workers could run a job, and what the others lack."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from h2kbus.cli.invocation import Invocation
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.cli.submit import Plugins, specs_of
from h2kbus.client import Bus
from h2kbus.errors import SettingsError
from h2kbus.plugins import load_catalog
from subjects.catalog import OperationCatalog
from subjects.fit import Demand, lacks, preferred
from subjects.fleet import WorkerCapabilities
from subjects.lanes import job_needs
from subjects.record import JobRecord
from subjects.spec import JobSpec
from subjects.states import TERMINAL, State

_SUFFIXES: Final = frozenset({".json", ".jsonl", ".yaml", ".yml"})


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A live worker; it could run the job if it lacks nothing."""

    worker_id: str
    free_slots: int
    slots: int
    lacks: tuple[str, ...] = ()


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a job goes, and who could take it from there. Without `state` it is no job of the bus yet."""

    job_id: str
    pool: str
    lane: str
    priority: int
    candidates: tuple[Candidate, ...]
    state: State | None = None
    worker_id: str | None = None
    pending_reason: str | None = None

    @property
    def able(self) -> list[Candidate]:
        return [each for each in self.candidates if not each.lacks]


def register(app: typer.Typer) -> None:
    """Add this module's command to the program."""
    app.command()(explain)


def explain(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(metavar="JOB", help="A job's id, or a file with jobs; - is stdin.")
    ],
    plugins: Plugins = [],  # noqa: B006 - typer copies it
) -> None:
    """Say which workers could run a job, and what the others lack.

    For a job of the bus, or for one in a file that has not been handed in yet.
    """
    for found in run_async(_explain, context.obj, target, plugins):
        if context.obj.json:
            print_json(found)
        else:
            show(found)


async def _explain(invocation: Invocation, target: str, plugins: Sequence[str]) -> list[Explanation]:
    async with invocation.bus() as bus:
        workers = await bus.workers()
        if not _is_file(target):
            return [await _of_job(bus, target, workers)]
        catalog = load_catalog(plugins)
        return [_of_spec(spec, catalog, workers) for spec in _specs(target)]


def _is_file(target: str) -> bool:
    path = Path(target)
    return target == "-" or path.suffix in _SUFFIXES or "/" in target or path.is_file()


def _specs(target: str) -> Iterator[JobSpec]:
    found = False
    for spec in specs_of([target]):
        found = True
        yield spec
    if not found:
        raise SettingsError(f"{target} holds no job")


async def _of_job(bus: Bus, job_id: str, workers: Sequence[WorkerCapabilities]) -> Explanation:
    record: JobRecord = await bus.status(job_id)
    return Explanation(
        job_id=job_id,
        pool=record.pool,
        lane=record.lane,
        priority=record.priority,
        state=record.state,
        worker_id=record.worker_id,
        pending_reason=record.pending_reason,
        candidates=_candidates(Demand.of_record(record), workers),
    )


def _of_spec(spec: JobSpec, catalog: OperationCatalog, workers: Sequence[WorkerCapabilities]) -> Explanation:
    declaration = catalog.declaration_of(spec)
    least = Demand.of(spec, job_needs(catalog.needs_of(declaration, spec), spec))
    demand = preferred(least, declaration.prefers, workers)
    return Explanation(
        job_id=spec.job_id or "",
        pool=demand.pool,
        lane=demand.lane,
        priority=spec.execution_policy.priority,
        candidates=_candidates(demand, workers),
    )


def _candidates(demand: Demand, workers: Sequence[WorkerCapabilities]) -> tuple[Candidate, ...]:
    """The workers, those that could run it first."""
    found = (
        Candidate(
            worker_id=each.worker_id,
            free_slots=each.free_slots,
            slots=each.max_concurrent_jobs,
            lacks=lacks(each, demand),
        )
        for each in workers
    )
    return tuple(sorted(found, key=lambda each: (len(each.lacks), each.worker_id)))


def show(found: Explanation) -> None:
    """The explanation for people, the answer first."""
    print_line(f"{found.job_id or 'the job'}: {_answer(found)}")
    print_line(f"lane:  {found.pool}/{found.lane}/{found.priority}")
    if found.pending_reason:
        print_line(f"waits: {found.pending_reason}")
    if found.candidates:
        print_table(
            ("WORKER", "CAN RUN IT", "FREE SLOTS", "WHY NOT"), (_row(each) for each in found.candidates)
        )


def _answer(found: Explanation) -> str:
    if found.state in TERMINAL:
        return f"it is {found.state}"
    if found.worker_id:
        return f"it is {found.state} on {found.worker_id}"
    able = found.able
    if not able:
        return "no live worker can run it" if found.candidates else "no worker is alive"
    free = sum(each.free_slots for each in able)
    workers = "1 worker" if len(able) == 1 else f"{len(able)} workers"
    return f"{workers} can run it, with {free} free slots" if free else f"{workers} can run it, all busy"


def _row(each: Candidate) -> tuple[Any, ...]:
    answer = "no" if each.lacks else "yes"
    return (each.worker_id, answer, f"{each.free_slots} of {each.slots}", "; ".join(each.lacks))
