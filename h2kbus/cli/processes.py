"""Commands that run until they are told to stop: up, worker, scheduler. Here everything is put together."""

import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import anyio
import msgspec
import typer
from anyio.abc import TaskStatus

from h2kbus.cli.exits import say
from h2kbus.cli.fleet import Capabilities, NoCapabilities, new_worker_id, read_switches
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json
from h2kbus.cli.services import Drain, Service, serve
from h2kbus.cli.submit import Plugins
from h2kbus.client import Bus
from h2kbus.client import connect as connect_client
from h2kbus.connection import Connection, connect
from h2kbus.dashboard import page_origins
from h2kbus.embedded import (
    DEFAULT_PORT,
    DEFAULT_WEBSOCKET_PORT,
    EmbeddedServer,
    Pages,
    default_data_dir,
    embedded_server,
)
from h2kbus.errors import BusUnreachable, JobFinished
from h2kbus.plugins import load_catalog
from h2kbus.settings import ConnectionSettings
from subjects.catalog import OperationCatalog
from subjects.fleet import WorkerCapabilities
from subjects.grammar import Grammar
from subjects.lease import LEASE_SECONDS, MIN_LEASE_SECONDS
from subjects.record import JobRecord
from subjects.spec import DEFAULT_POOL, JobSpec
from subjects.topology import REPROBE_SECONDS, Topology

MAX_SLOTS: Final = 10
DEFAULT_SLOTS: Final = min(MAX_SLOTS, os.cpu_count() or 1)
DEFAULT_GRACE: Final = 30.0

Slots = Annotated[int, typer.Option(min=1, max=MAX_SLOTS, help="Jobs at once, for each worker.")]
Grace = Annotated[float, typer.Option(min=0, help="Seconds that running jobs get to end after Ctrl-C.")]
Lease = Annotated[
    float,
    typer.Option(
        min=MIN_LEASE_SECONDS,
        max=3600,
        help="A job whose worker is silent for this long (seconds) is given out again.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log more, to stderr.")]


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker of this machine is to be."""

    pool: str = DEFAULT_POOL
    slots: int = DEFAULT_SLOTS
    grace: float = DEFAULT_GRACE
    switches: dict[str, bool] = {}
    max_disk_size_tb: float = 0.0
    reprobe_seconds: float = REPROBE_SECONDS


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (up, worker, scheduler):
        app.command()(command)


def up(
    context: typer.Context,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the streams are kept [~/.local/share/h2kbus].")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = DEFAULT_PORT,
    websocket_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="For pages in a browser [4280; a free one with another --port]."),
    ] = None,
    page_origin: Annotated[
        list[str], typer.Option(help="Origin of a page that may connect [that of `h2kbus dashboard`].")
    ] = [],  # noqa: B006 - typer copies it
    workers: Annotated[int, typer.Option(min=0, max=64, help="Workers to run; may be none.")] = 1,
    slots: Slots = DEFAULT_SLOTS,
    grace: Grace = DEFAULT_GRACE,
    lease: Lease = LEASE_SECONDS,
    operations: Plugins = [],  # noqa: B006 - typer copies it
    verbose: Verbose = False,
) -> None:
    """Run a whole bus on this machine.

    Server, scheduler and workers, until Ctrl-C. Then the workers drain: they take no more jobs and
    finish those that run. A second Ctrl-C ends it.
    """
    set_up_logging(verbose)
    options = WorkerOptions(slots=slots, grace=grace)
    place = data_dir or default_data_dir(os.environ)
    topology = Topology(Grammar(context.obj.settings().root), lease_seconds=lease)
    pages = Pages(_websocket_port(websocket_port, port), page_origins(page_origin))
    run_async(_up, place, port, pages, workers, topology, load_catalog(operations), options, context.obj.json)


def worker(
    context: typer.Context,
    slots: Slots = DEFAULT_SLOTS,
    pool: Annotated[str, typer.Option(help="The pool of jobs to serve.")] = DEFAULT_POOL,
    grace: Grace = DEFAULT_GRACE,
    worker_id: Annotated[
        str | None, typer.Option("--id", help="An id of your own [host and random].")
    ] = None,
    capability: Capabilities = [],  # noqa: B006 - typer copies it
    no_capability: NoCapabilities = [],  # noqa: B006 - typer copies it
    max_disk_tb: Annotated[float, typer.Option(min=0, help="The largest disk to take; 0 for any.")] = 0.0,
    reprobe: Annotated[
        float, typer.Option(min=10, help="Seconds after which capabilities are probed again.")
    ] = REPROBE_SECONDS,
    operations: Plugins = [],  # noqa: B006 - typer copies it
    verbose: Verbose = False,
) -> None:
    """Run one worker.

    It pulls the jobs that this machine can do. SIGTERM or Ctrl-C drains it; a second one ends it.
    """
    set_up_logging(verbose)
    options = WorkerOptions(
        pool=pool,
        slots=slots,
        grace=grace,
        switches=read_switches(capability, no_capability),
        max_disk_size_tb=max_disk_tb,
        reprobe_seconds=reprobe,
    )
    settings = context.obj.settings("h2kbus-worker")
    run_async(_worker, settings, load_catalog(operations), options, worker_id or new_worker_id())


def scheduler(
    context: typer.Context,
    operations: Plugins = [],  # noqa: B006 - typer copies it
    replicas: Annotated[int, typer.Option(min=1, max=5, help="Copies of each stream, on a cluster.")] = 1,
    lease: Lease = LEASE_SECONDS,
    verbose: Verbose = False,
) -> None:
    """Run one scheduler.

    It reads commands, publishes jobs to their lanes and takes them back from lost workers. Any number may
    run side by side; give all of them the same --lease.
    """
    set_up_logging(verbose)
    settings = context.obj.settings("h2kbus-scheduler")
    topology = Topology(Grammar(settings.root), replicas, lease)
    run_async(_scheduler, settings, load_catalog(operations), topology)


async def run_once(spec: JobSpec, operations: Sequence[str]) -> JobRecord:
    """One job on a bus of its own; Ctrl-C cancels it, and its end is waited for."""
    from h2kbus.cli.follow import follow

    async with local_bus(operations=operations) as bus, anyio.create_task_group() as group:
        job_id = await bus.submit(spec)
        group.start_soon(_cancel_on_signal, bus, job_id)
        [record] = await follow(bus, [job_id])
        group.cancel_scope.cancel()
    return record


@contextlib.asynccontextmanager
async def local_bus(data_dir: Path | None = None, *, operations: Sequence[str] = ()) -> AsyncIterator[Bus]:
    """A client of a whole bus on this machine, which ends with the context.

    Without `data_dir` its streams are temporary, and then nothing is gained by syncing each write.
    """
    catalog, topology = load_catalog(operations), Topology(Grammar())
    profile = await _profile(catalog, WorkerOptions(slots=1), new_worker_id())
    async with embedded_server(data_dir, 0, sync_always=data_dir is not None) as server:
        settings = ConnectionSettings(url=server.url)
        async with connect_client(settings=settings) as bus, anyio.create_task_group() as group:
            await group.start(_serve_scheduler, settings, topology, catalog)
            await group.start(_serve_worker, settings, topology, catalog, profile, WorkerOptions(grace=0.0))
            yield bus
            group.cancel_scope.cancel()


async def _cancel_on_signal(bus: Bus, job_id: str) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)
        say("cancelling the job")
        # It may have ended in this moment; that is what was wanted.
        with contextlib.suppress(JobFinished):
            await bus.cancel(job_id, "interrupted")


async def _up(
    place: Path,
    port: int,
    pages: Pages,
    workers: int,
    topology: Topology,
    catalog: OperationCatalog,
    options: WorkerOptions,
    as_json: bool,
) -> None:
    profiles = [await _profile(catalog, options, new_worker_id()) for _ in range(workers)]
    async with embedded_server(place, port, pages=pages) as server, anyio.create_task_group() as watch:
        watch.start_soon(server.wait)
        settings = ConnectionSettings(url=server.url, root=topology.grammar.root)
        services: list[Service] = [functools.partial(_serve_scheduler, settings, topology, catalog)]
        services += [
            functools.partial(_serve_worker, settings, topology, catalog, profile, options)
            for profile in profiles
        ]
        ids = [profile.worker_id for profile in profiles]
        await serve(services, functools.partial(_announce, server, ids, as_json))
        watch.cancel_scope.cancel()


def _announce(server: EmbeddedServer, ids: list[str], as_json: bool) -> None:
    """Say that everything is ready: one JSON line, or words with what to type next."""
    if as_json:
        ready = {"url": server.url, "websocket": server.websocket, "data_dir": str(server.data_dir)}
        print_json({**ready, "workers": ids})
        return
    say(f"ready at {server.url}; streams in {server.data_dir}; {len(ids)} workers; Ctrl-C drains and stops")
    port = server.url.rpartition(":")[2]
    flag = "" if port == str(DEFAULT_PORT) else f" --url {server.url}"
    say(f"try: h2kbus{flag} submit --operation convert --image disk.vmdk --output-dir out --wait")


def _websocket_port(wanted: int | None, port: int) -> int:
    """A second bus on one machine must not want the port of the first."""
    if wanted is not None:
        return wanted
    return DEFAULT_WEBSOCKET_PORT if port == DEFAULT_PORT else 0


async def _worker(
    settings: ConnectionSettings, catalog: OperationCatalog, options: WorkerOptions, worker_id: str
) -> None:
    profile = await _profile(catalog, options, worker_id)
    topology = Topology(Grammar(settings.root))
    service = functools.partial(_serve_worker, settings, topology, catalog, profile, options)
    await serve([service], lambda: say(f"worker {worker_id} is ready; Ctrl-C drains it"))


async def _scheduler(settings: ConnectionSettings, catalog: OperationCatalog, topology: Topology) -> None:
    service = functools.partial(_serve_scheduler, settings, topology, catalog)
    await serve([service], lambda: say("scheduler is ready; Ctrl-C drains it"))


async def _serve_scheduler(
    settings: ConnectionSettings,
    topology: Topology,
    catalog: OperationCatalog,
    *,
    task_status: TaskStatus[Drain],
) -> None:
    from scheduler.service import Scheduler

    name = f"scheduler-{new_worker_id()}"
    async with connect(settings) as connection, _while_connected(connection):
        await Scheduler(connection, topology, catalog, name).serve(task_status=task_status)


async def _serve_worker(
    settings: ConnectionSettings,
    topology: Topology,
    catalog: OperationCatalog,
    profile: WorkerCapabilities,
    options: WorkerOptions,
    *,
    task_status: TaskStatus[Drain],
) -> None:
    from workers.service import Worker

    async with connect(settings) as connection, _while_connected(connection):
        # What is not there any more ends a capability, not the worker: nothing is insisted on again.
        switched_off = {token: False for token, wanted in options.switches.items() if not wanted}
        later = msgspec.structs.replace(options, switches=switched_off)
        detect = functools.partial(_profile, catalog, later, profile.worker_id)
        worker = Worker(connection, topology, catalog, profile, detect, options.reprobe_seconds)
        await worker.serve(grace=options.grace, task_status=task_status)


@contextlib.asynccontextmanager
async def _while_connected(connection: Connection) -> AsyncIterator[None]:
    """End what runs inside when the connection is closed for good, which reconnecting never does."""
    async with anyio.create_task_group() as group:
        group.start_soon(_fail_when_closed, connection)
        yield
        group.cancel_scope.cancel()


async def _fail_when_closed(connection: Connection) -> None:
    await connection.closed.wait()
    raise BusUnreachable("the server closed the connection for good")


async def _profile(catalog: OperationCatalog, options: WorkerOptions, worker_id: str) -> WorkerCapabilities:
    from workers.capabilities import detect

    return await detect(
        worker_id=worker_id,
        pool=options.pool,
        slots=options.slots,
        work_dir=Path.cwd(),
        plugin_tokens=catalog.plugin_tokens,
        overrides=options.switches,
        max_disk_size_tb=options.max_disk_size_tb,
    )


def set_up_logging(verbose: bool) -> None:
    """Log to stderr, one line each; the NATS client's own chatter only when asked for."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("nats").setLevel(logging.DEBUG if verbose else logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
