"""Commands about the fleet: workers, lanes, capabilities."""

import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer

from h2kbus.cli.invocation import Invocation
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.errors import SettingsError
from subjects.fleet import LaneAnnouncement, WorkerCapabilities


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (workers, lanes, capabilities):
        app.command()(command)


def workers(context: typer.Context) -> None:
    """List the workers that are alive."""
    found = run_async(_workers, context.obj)
    if context.obj.json:
        for worker in found:
            print_json(worker)
        return
    titles = ("WORKER", "POOL", "SLOTS", "RUNNING", "MODE", "CAPABILITIES")
    print_table(titles, (_row(worker) for worker in found))


async def _workers(invocation: Invocation) -> list[WorkerCapabilities]:
    async with invocation.bus() as bus:
        return await bus.workers()


def lanes(context: typer.Context) -> None:
    """List the lanes that have been used.

    A lane is a combination of pool, capabilities and priority.
    """
    found = run_async(_lanes, context.obj)
    if context.obj.json:
        for lane in found:
            print_json(lane)
        return
    rows = ((lane.pool, lane.lane, lane.priority, lane.consumer) for lane in found)
    print_table(("POOL", "LANE", "PRIORITY", "CONSUMER"), rows)


async def _lanes(invocation: Invocation) -> list[LaneAnnouncement]:
    async with invocation.bus() as bus:
        return await bus.lanes()


def capabilities(context: typer.Context) -> None:
    """Probe what this machine can do.

    Shows the evidence for each capability. Needs no bus.
    """
    found = run_async(_profile)
    if context.obj.json:
        print_json(found)
        return
    print_line(f"{found.os_info}, {found.execution_mode}, level {found.capability_level}")
    rows = (
        (token, "yes" if proven else "no", found.evidence.get(token, ""))
        for token, proven in sorted(found.capabilities.items())
    )
    print_table(("CAPABILITY", "PROVEN", "EVIDENCE"), rows)


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


def read_switches(texts: list[str]) -> dict[str, bool]:
    """`token=off` and `token=on`, as `--capability` takes them. Raises SettingsError."""
    words = {"on": True, "off": False}
    found = {}
    for text in texts:
        token, _, word = text.partition("=")
        if word not in words:
            raise SettingsError(f"--capability {text!r}: write it as token=on or token=off")
        found[token] = words[word]
    return found


Capabilities = Annotated[
    list[str], typer.Option("--capability", metavar="TOKEN=on|off", help="Switch one off, or insist on it.")
]


def _row(worker: WorkerCapabilities) -> tuple[object, ...]:
    proven = " ".join(sorted(token for token, yes in worker.capabilities.items() if yes))
    slots = f"{worker.free_slots}/{worker.max_concurrent_jobs} free"
    running = " ".join(worker.running_jobs) or ("draining" if worker.draining else "-")
    return (worker.worker_id, worker.pool, slots, running, worker.execution_mode, proven)
