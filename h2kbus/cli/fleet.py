"""Commands about the fleet: workers, lanes, capabilities, and orders to workers."""

import datetime as dt
import secrets
import socket
from pathlib import Path
from typing import Annotated, Final, Literal

import anyio
import typer

from h2kbus.cli.invocation import Invocation
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.errors import BusTimeout, SettingsError
from h2kbus.fleet import LaneLoad
from subjects.fleet import WorkerCapabilities

OBEYED_SECONDS: Final = 15.0
"""A worker that lives has heard an order by its next heartbeat."""
LOOK_SECONDS: Final = 0.1

WorkerId = Annotated[str, typer.Argument(metavar="WORKER", help="A worker's id, as `workers` shows it.")]
Reason = Annotated[str, typer.Option(help="Why, for those who look at the order later.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (workers, lanes, cordon, uncordon, drain, capabilities):
        app.command()(command)


def workers(context: typer.Context) -> None:
    """List the workers that are alive."""
    found, now = run_async(_workers, context.obj)
    if context.obj.json:
        for worker in found:
            print_json(worker)
        return
    titles = ("WORKER", "POOL", "STATE", "SLOTS", "RUNNING", "SEEN", "VERSION", "LEVEL", "CAPABILITIES")
    print_table(titles, (_row(worker, now) for worker in found))


async def _workers(invocation: Invocation) -> tuple[list[WorkerCapabilities], dt.datetime]:
    """The workers, and what the server's clock says: heartbeats carry its times."""
    async with invocation.bus() as bus:
        return await bus.workers(), await bus.store.server_time()


def lanes(context: typer.Context) -> None:
    """List the lanes that have been used, and how full they are.

    A lane is a combination of pool, capabilities and priority. PARKED workers wait for its next job.
    """
    found = run_async(_lanes, context.obj)
    if context.obj.json:
        for lane in found:
            print_json(lane)
        return
    rows = (
        (each.pool, each.lane, each.priority, each.waiting, each.running, _age(each), each.parked)
        for each in found
    )
    print_table(("POOL", "LANE", "PRIORITY", "WAITING", "RUNNING", "OLDEST", "PARKED"), rows)


async def _lanes(invocation: Invocation) -> list[LaneLoad]:
    async with invocation.bus() as bus:
        return await bus.lane_loads()


def _age(load: LaneLoad) -> str:
    return "-" if load.oldest_seconds is None else in_words(load.oldest_seconds)


def cordon(context: typer.Context, worker_id: WorkerId, reason: Reason = "") -> None:
    """Tell a worker to take no new jobs; those that run go on.

    It stays so until `uncordon`, also when a worker of this name is started anew.
    """
    run_async(_order, context.obj, worker_id, "cordon", reason)
    print_line(f"{worker_id} takes no new jobs")


def uncordon(context: typer.Context, worker_id: WorkerId) -> None:
    """Tell a cordoned worker to take jobs again."""
    run_async(_order, context.obj, worker_id, "uncordon", "")
    print_line(f"{worker_id} takes jobs again")


def drain(context: typer.Context, worker_id: WorkerId, reason: Reason = "") -> None:
    """Tell a worker to take no new jobs and to end when those that run have ended.

    Those that do not end within the worker's own --grace go back to their lanes.
    """
    run_async(_order, context.obj, worker_id, "drain", reason)
    print_line(f"{worker_id} drains")


async def _order(
    invocation: Invocation, worker_id: str, order: Literal["cordon", "drain", "uncordon"], reason: str
) -> None:
    """Give the order, and wait until the worker's heartbeat shows it."""
    async with invocation.bus() as bus:
        await bus.order(worker_id, order, reason)
        with anyio.move_on_after(OBEYED_SECONDS):
            while True:
                if _obeys(await bus.workers(), worker_id, order):
                    return
                await anyio.sleep(LOOK_SECONDS)
    raise BusTimeout(f"worker {worker_id} has not answered for {OBEYED_SECONDS:g} s; the order stands")


def _obeys(workers: list[WorkerCapabilities], worker_id: str, order: str) -> bool:
    """Whether the worker is as it was told to be, or gone."""
    worker = next((each for each in workers if each.worker_id == worker_id), None)
    if worker is None or order == "drain":
        return worker is None or worker.draining
    return worker.cordoned == (order == "cordon")


def capabilities(context: typer.Context) -> None:
    """Probe what this machine can do.

    Shows the evidence for each capability, and what to install where one is missing. Needs no bus.
    """
    found = run_async(_profile)
    if context.obj.json:
        print_json(found)
        return
    print_line(f"{found.os_info}, {found.execution_mode}, level {found.capability_level}")
    rows = (
        (token, "yes" if proven else "no", found.evidence.get(token, ""), found.advice.get(token, "-"))
        for token, proven in sorted(found.capabilities.items())
    )
    print_table(("CAPABILITY", "PROVEN", "EVIDENCE", "TO MEND IT"), rows)


async def _profile() -> WorkerCapabilities:
    from h2kbus.plugins import load_catalog
    from workers.capabilities import detect

    return await detect(
        worker_id=new_worker_id(),
        pool="default",
        slots=1,
        work_dir=Path.cwd(),
        plugin_tokens=load_catalog().plugin_tokens,
    )


def new_worker_id() -> str:
    """The host's name and a few random letters: two workers never share an id."""
    host = "".join(each if each.isascii() and each.isalnum() else "-" for each in socket.gethostname())
    return f"{host[:100]}-{secrets.token_hex(3)}"


def read_switches(texts: list[str], switched_off: list[str]) -> dict[str, bool]:
    """`token`, `token=on` and `token=off`, as `--capability` takes them. Raises SettingsError."""
    words = {"": True, "on": True, "off": False}
    found = dict.fromkeys(switched_off, False)
    for text in texts:
        token, _, word = text.partition("=")
        if word not in words:
            raise SettingsError(f"--capability {text!r}: write it as token=on or token=off")
        if found.get(token, words[word]) != words[word]:
            raise SettingsError(f"capability {token} is both on and off")
        found[token] = words[word]
    return found


Capabilities = Annotated[
    list[str],
    typer.Option("--capability", metavar="TOKEN[=on|off]", help="Insist on one, or switch it off."),
]
NoCapabilities = Annotated[
    list[str], typer.Option("--no-capability", metavar="TOKEN", help="Switch one off: it is not probed.")
]


def _row(worker: WorkerCapabilities, now: dt.datetime) -> tuple[object, ...]:
    return (
        worker.worker_id,
        worker.pool,
        _state(worker),
        f"{worker.free_slots}/{worker.max_concurrent_jobs} free",
        " ".join(worker.running_jobs) or "-",
        f"{in_words(max(0.0, (now - worker.last_heartbeat).total_seconds()))} ago",
        worker.version,
        f"{worker.capability_level} ({worker.execution_mode})",
        " ".join(sorted(token for token, yes in worker.capabilities.items() if yes)),
    )


def _state(worker: WorkerCapabilities) -> str:
    if worker.draining:
        return "draining"
    return "cordoned" if worker.cordoned else "ready"


def in_words(seconds: float) -> str:
    """A duration for people, in its two largest units."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{seconds:.0f} s"
