"""Commands that run until they are told to stop: up, worker, scheduler. Here everything is put together."""

import contextlib
import functools
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated

import anyio
import typer

from h2kbus.cli.exits import say
from h2kbus.cli.fleet import Capabilities, NoCapabilities, new_worker_id, read_switches
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json
from h2kbus.cli.roles import profile_of, serve_scheduler, serve_worker
from h2kbus.cli.services import Service, serve
from h2kbus.cli.submit import Plugins
from h2kbus.cli.telemetry import Format, MetricsAddress, MetricsPort, Outlet, telemetry
from h2kbus.cli.worker_options import (
    DEFAULT_GRACE,
    DEFAULT_SLOTS,
    Confinement,
    Grace,
    ImageRoots,
    OutputRoots,
    Slots,
    VerifyKeys,
    WorkerOptions,
)
from h2kbus.client import Bus
from h2kbus.client import connect as connect_client
from h2kbus.dashboard import pages_for
from h2kbus.embedded import DEFAULT_PORT, EmbeddedServer, Pages, default_data_dir, embedded_server
from h2kbus.errors import JobFinished
from h2kbus.local_servers import announced
from h2kbus.logs import LogFormat, set_up_logging
from h2kbus.plugins import load_catalog
from h2kbus.scrape import DEFAULT_ADDRESS
from h2kbus.settings import ConnectionSettings
from h2kbus.signing import read_public_keys
from subjects.catalog import OperationCatalog
from subjects.fleet import CONFINED
from subjects.grammar import Grammar
from subjects.lease import LEASE_SECONDS, MIN_LEASE_SECONDS
from subjects.record import JobRecord
from subjects.spec import DEFAULT_POOL, JobSpec
from subjects.topology import REPROBE_SECONDS, Topology

Lease = Annotated[
    float,
    typer.Option(
        min=MIN_LEASE_SECONDS,
        max=3600,
        help="A job whose worker is silent for this long (seconds) is given out again.",
    ),
]
OwnName = Annotated[
    bool, typer.Option("--require-own-name", help="Refuse jobs that are requested_by somebody else.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log more, to stderr.")]


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
    image_root: ImageRoots = [],  # noqa: B006 - typer copies it
    output_root: OutputRoots = [],  # noqa: B006 - typer copies it
    operations: Plugins = [],  # noqa: B006 - typer copies it
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = DEFAULT_ADDRESS,
    log_format: Format = LogFormat.CONSOLE,
    verbose: Verbose = False,
) -> None:
    """Run a whole bus on this machine.

    Server, scheduler and workers, until Ctrl-C. Then the workers drain: they take no more jobs and
    finish those that run. A second Ctrl-C ends it.
    """
    set_up_logging(log_format, verbose=verbose)
    options = WorkerOptions(
        slots=slots, grace=grace, image_roots=tuple(image_root), output_roots=tuple(output_root)
    )
    outlet = Outlet(metrics_port, metrics_address)
    place = data_dir or default_data_dir(os.environ)
    topology = Topology(Grammar(context.obj.settings().root), lease_seconds=lease)
    pages = pages_for(port, websocket_port, page_origin)
    run_async(
        _up,
        place,
        port,
        pages,
        workers,
        topology,
        load_catalog(operations),
        options,
        outlet,
        context.obj.json,
    )


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
    require_confinement: Confinement = False,
    verify_keys: VerifyKeys = None,
    image_root: ImageRoots = [],  # noqa: B006 - typer copies it
    output_root: OutputRoots = [],  # noqa: B006 - typer copies it
    operations: Plugins = [],  # noqa: B006 - typer copies it
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = DEFAULT_ADDRESS,
    log_format: Format = LogFormat.CONSOLE,
    verbose: Verbose = False,
) -> None:
    """Run one worker.

    It pulls the jobs that this machine can do. SIGTERM or Ctrl-C drains it; a second one ends it.
    """
    set_up_logging(log_format, verbose=verbose)
    insisted = [CONFINED] if require_confinement else []
    options = WorkerOptions(
        pool=pool,
        slots=slots,
        grace=grace,
        switches=read_switches([*capability, *insisted], no_capability),
        max_disk_size_tb=max_disk_tb,
        reprobe_seconds=reprobe,
        trusted_keys=read_public_keys(verify_keys) if verify_keys else None,
        image_roots=tuple(image_root),
        output_roots=tuple(output_root),
    )
    settings = context.obj.settings("h2kbus-worker")
    outlet = Outlet(metrics_port, metrics_address)
    run_async(_worker, settings, load_catalog(operations), options, outlet, worker_id or new_worker_id())


def scheduler(
    context: typer.Context,
    operations: Plugins = [],  # noqa: B006 - typer copies it
    replicas: Annotated[int, typer.Option(min=1, max=5, help="Copies of each stream, on a cluster.")] = 1,
    lease: Lease = LEASE_SECONDS,
    require_own_name: OwnName = False,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = DEFAULT_ADDRESS,
    log_format: Format = LogFormat.CONSOLE,
    verbose: Verbose = False,
) -> None:
    """Run one scheduler.

    It reads commands, publishes jobs to their lanes and takes them back from lost workers. Any number may
    run side by side; give all of them the same --lease.
    """
    set_up_logging(log_format, verbose=verbose)
    settings = context.obj.settings("h2kbus-scheduler")
    topology = Topology(Grammar(settings.root), replicas, lease)
    outlet = Outlet(metrics_port, metrics_address)
    run_async(_scheduler, settings, load_catalog(operations), topology, outlet, require_own_name)


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
    profile = await profile_of(catalog, WorkerOptions(slots=1), new_worker_id())
    async with embedded_server(data_dir, 0, sync_always=data_dir is not None) as server:
        settings = server.settings()
        async with connect_client(settings=settings) as bus, anyio.create_task_group() as group:
            await group.start(serve_scheduler, settings, topology, catalog)
            await group.start(serve_worker, settings, topology, catalog, profile, WorkerOptions(grace=0.0))
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
    outlet: Outlet,
    as_json: bool,
) -> None:
    profiles = [await profile_of(catalog, options, new_worker_id()) for _ in range(workers)]
    async with (
        telemetry(outlet, catalog, "h2kbus-up") as told,
        embedded_server(place, port, pages=pages) as server,
        anyio.create_task_group() as watch,
    ):
        watch.start_soon(server.wait)
        settings = server.settings(topology.grammar.root)
        services: list[Service] = [functools.partial(serve_scheduler, settings, topology, catalog, told)]
        services += [
            functools.partial(serve_worker, settings, topology, catalog, profile, options, told)
            for profile in profiles
        ]
        ids = [profile.worker_id for profile in profiles]
        with announced(server.url, server.token, os.environ):
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
    say(f"or in a browser: h2kbus{flag} dashboard --websocket {server.websocket}")


async def _worker(
    settings: ConnectionSettings,
    catalog: OperationCatalog,
    options: WorkerOptions,
    outlet: Outlet,
    worker_id: str,
) -> None:
    profile = await profile_of(catalog, options, worker_id)
    topology = Topology(Grammar(settings.root))
    async with telemetry(outlet, catalog, settings.name) as told:
        service = functools.partial(serve_worker, settings, topology, catalog, profile, options, told)
        await serve([service], lambda: say(f"worker {worker_id} is ready; Ctrl-C drains it"))


async def _scheduler(
    settings: ConnectionSettings,
    catalog: OperationCatalog,
    topology: Topology,
    outlet: Outlet,
    own_name: bool,
) -> None:
    async with telemetry(outlet, catalog, settings.name) as told:
        service = functools.partial(serve_scheduler, settings, topology, catalog, told, own_name)
        await serve([service], lambda: say("scheduler is ready; Ctrl-C drains it"))
