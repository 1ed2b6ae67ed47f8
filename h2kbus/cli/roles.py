"""The two services of a bus, put together: schedulers and workers."""

import functools
from pathlib import Path

import msgspec
from anyio.abc import TaskStatus

from h2kbus.cli.fleet import new_worker_id
from h2kbus.cli.services import Drain, while_connected
from h2kbus.cli.worker_options import WorkerOptions
from h2kbus.connection import connect
from h2kbus.settings import ConnectionSettings
from h2kbus.signing import Signer
from h2kbus.telemetry import SILENT, Telemetry
from subjects.catalog import OperationCatalog
from subjects.fleet import CONFINED, WorkerCapabilities, WorkerSecurity
from subjects.topology import Topology


async def serve_scheduler(
    settings: ConnectionSettings,
    topology: Topology,
    catalog: OperationCatalog,
    told: Telemetry = SILENT,
    own_name: bool = False,
    *,
    task_status: TaskStatus[Drain],
) -> None:
    """Run a scheduler until it is drained."""
    from scheduler.service import Scheduler

    name = f"scheduler-{new_worker_id()}"
    async with connect(settings) as connection, while_connected(connection, told.observe):
        service = Scheduler(connection, topology, catalog, name, own_name=own_name, telemetry=told)
        await service.serve(task_status=task_status)


async def serve_worker(
    settings: ConnectionSettings,
    topology: Topology,
    catalog: OperationCatalog,
    profile: WorkerCapabilities,
    options: WorkerOptions,
    told: Telemetry = SILENT,
    *,
    task_status: TaskStatus[Drain],
) -> None:
    """Run a worker until it is drained."""
    from workers.profile import Probes
    from workers.regular import allow_many_files
    from workers.service import Worker
    from workers.trust import Keys

    allow_many_files()
    async with connect(settings) as connection, while_connected(connection, told.observe):
        # What is not there any more ends a capability, not the worker: nothing is insisted on again. But
        # where tools must be confined they are to the end: then a probe that fails changes nothing.
        lasting = {token: on for token, on in options.switches.items() if token == CONFINED or not on}
        later = msgspec.structs.replace(options, switches=lasting)
        again = functools.partial(profile_of, catalog, later, profile.worker_id)
        worker = Worker(
            connection,
            topology,
            catalog,
            profile,
            Probes(again, options.reprobe_seconds),
            site=options.site,
            keys=Keys(trusted=options.trusted_keys, signer=Signer.of(settings)),
            telemetry=told,
        )
        await worker.serve(grace=options.grace, task_status=task_status)


async def profile_of(catalog: OperationCatalog, options: WorkerOptions, worker_id: str) -> WorkerCapabilities:
    """What a worker of this machine can do, by probes."""
    from workers.capabilities import detect

    site = options.site
    found = await detect(
        worker_id=worker_id,
        pool=options.pool,
        slots=options.slots,
        work_dir=next(iter(site.output_roots), Path.cwd()),
        plugin_tokens=catalog.plugin_tokens,
        overrides=options.switches,
        max_disk_size_tb=options.max_disk_size_tb,
    )
    guard = msgspec.structs.replace(
        found.security or WorkerSecurity(), verifies_signatures=options.trusted_keys is not None
    )
    return msgspec.structs.replace(site.described(found), security=guard)
