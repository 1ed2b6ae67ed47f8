"""Commands about jobs that exist: status, watch, ls, cancel, retry."""

import datetime as dt
import re
from collections import deque
from typing import Annotated, Final

import typer

from h2kbus.cli.exits import Exit, say
from h2kbus.cli.invocation import Invocation
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.errors import SettingsError
from subjects.identity import is_own_name
from subjects.record import JobRecord
from subjects.states import State

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    for command in (status, watch, ls, cancel, retry):
        app.command()(command)


def status(context: typer.Context, job_id: JobId) -> None:
    """Show a job's record.

    Its state, attempts, audit trail and result; with --json as it stands on the wire.
    """
    record = run_async(_status, context.obj, job_id)
    if context.obj.json:
        print_json(record)
    else:
        describe(record)


async def _status(invocation: Invocation, job_id: str) -> JobRecord:
    async with invocation.bus() as bus:
        return await bus.status(job_id)


def watch(context: typer.Context, job_id: JobId) -> None:
    """Replay a job's events and follow it.

    Ends with the job. The exit code is 0 when it COMPLETED and 1 when it ended in another way. Ctrl-C
    leaves the job alone.
    """
    raise typer.Exit(ending(run_async(_watch, context.obj, job_id)))


async def _watch(invocation: Invocation, job_id: str) -> State:
    from h2kbus.cli.follow import live_view

    async with invocation.bus() as bus:
        if invocation.json:
            state = State.CREATED
            async for event in bus.watch(job_id):
                print_json(event)
                state = event.state
            return state
        with live_view(phases=True) as view:
            async for event in bus.watch(job_id):
                view.show(event)
        record = await bus.status(job_id)
        print_line(outcome(record))
        return record.state


def ls(
    context: typer.Context,
    state: Annotated[
        State | None, typer.Option(case_sensitive=False, help="Only jobs in this state.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only jobs that changed since then: a time (RFC 3339), or 30s, 15m, 2h, 7d ago."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest ones.")] = 100,
) -> None:
    """List jobs, newest change last."""
    moment = read_time(since) if since else None
    records = run_async(_newest, context.obj, state, moment, limit)
    if context.obj.json:
        for record in records:
            print_json(record)
        return
    titles = ("JOB", "STATE", "OPERATION", "PRIORITY", "ATTEMPT", "PROGRESS", "WORKER", "UPDATED", "WAITS")
    print_table(titles, (_row(record) for record in records))


async def _newest(
    invocation: Invocation, state: State | None, since: dt.datetime | None, limit: int
) -> list[JobRecord]:
    newest: deque[JobRecord] = deque(maxlen=limit)
    async with invocation.bus() as bus:
        async for record in bus.jobs(state=state, since=since):
            newest.append(record)
    return list(newest)


def cancel(
    context: typer.Context,
    job_id: JobId,
    reason: Annotated[str, typer.Option(help="Why, for the audit trail.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
) -> None:
    """Stop a job, wherever it is. A finished job is refused."""
    record = run_async(_cancel, context.obj, job_id, reason, wait)
    if context.obj.json:
        print_json(record or {"job_id": job_id, "cancel_requested": True})
    else:
        print_line(outcome(record) if record else f"{job_id}: cancellation requested")


async def _cancel(invocation: Invocation, job_id: str, reason: str, wait: bool) -> JobRecord | None:
    async with invocation.bus() as bus:
        await bus.cancel(job_id, reason)
        return await bus.result(job_id) if wait else None


def retry(context: typer.Context, job_id: JobId) -> None:
    """Run a finished job again.

    As a new job, which names the old one as its parent; prints the new id.
    """
    new_id, entry = run_async(_retry, context.obj, job_id)
    if context.obj.json:
        print_json(entry or {"job_id": new_id, "parent": job_id})
        return
    print_line(new_id)
    if entry is None:
        say(f"{new_id} waits for a scheduler; none has answered yet")


async def _retry(invocation: Invocation, job_id: str) -> tuple[str, JobRecord | None]:
    async with invocation.traced_bus() as bus:
        new_id = await bus.retry(job_id)
        entry = await bus.verdict(new_id)
        return new_id, entry.record if entry else None


def read_time(text: str) -> dt.datetime:
    """A point in time, given as RFC 3339 or as how long ago. Raises SettingsError."""
    ago = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if ago:
        return dt.datetime.now(dt.UTC) - dt.timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"--since {text!r} is neither a time (RFC 3339) nor like 15m, 2h, 7d") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def ending(state: State) -> Exit:
    """The exit code of a command that waited for a job."""
    return Exit.DONE if state is State.COMPLETED else Exit.JOB_FAILED


def outcome(record: JobRecord) -> str:
    """How a job ended, and where its results are, on one line."""
    words = [record.job_id, str(record.state)]
    result = record.result
    if result is None:
        return " ".join([*words, record.pending_reason or ""]).rstrip()
    if result.error is not None:
        words.append(f"{result.error.code}: {result.error.message}")
    words += [each for each in (result.outputs.fixed_image, result.outputs.report) if each]
    return "  ".join(words)


def describe(record: JobRecord) -> None:
    """The record for people."""
    spec, last = record.spec, record.progress
    facts = {
        "job": record.job_id,
        "state": record.state,
        "operation": spec.operation if spec else "",
        "image": spec.image.path if spec else "",
        "lane": f"{record.pool}/{record.lane}/{record.priority}",
        "attempt": record.attempt,
        "worker": record.worker_id or "",
        "progress": f"{last.progress_percent:.1f} % {last.phase} {last.message}" if last else "",
        "waits": record.pending_reason or "",
        "submitter": submitter_of(record),
        "signed by": spec.signature.key if spec and spec.signature else "",
        "parent": record.parent or "",
    }
    for name, value in facts.items():
        if value != "":
            print_line(f"{name + ':':<11}{value}")
    if record.result:
        print_line(f"{'result:':<11}{outcome(record)}")
    for warning in record.result.warnings if record.result else ():
        print_line(f"{'warning:':<11}{warning}")
    print_line("")
    trail = ((clock(each.at), each.to, each.by, each.reason or "") for each in record.transitions)
    print_table(("TIME", "STATE", "BY", "REASON"), trail)


def submitter_of(record: JobRecord) -> str:
    """Who submitted the job, and who it says to come from if that is another name."""
    requested_by = record.spec.audit.requested_by if record.spec else record.submitted_by
    own = is_own_name(record.submitted_by, requested_by)
    return record.submitted_by if own else f"{record.submitted_by}, in the name of {requested_by}"


def clock(moment: dt.datetime) -> str:
    """A point in time as it is shown to people: UTC, to the millisecond."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _row(record: JobRecord) -> tuple[object, ...]:
    done = 100.0 if record.state is State.COMPLETED else record.progress and record.progress.progress_percent
    percent = "" if done is None else f"{done:.0f} %"
    operation = record.spec.operation if record.spec else ""
    updated = clock(record.updated_at)
    worker = record.worker_id or ""
    return (
        record.job_id,
        record.state,
        operation,
        record.priority,
        record.attempt,
        percent,
        worker,
        updated,
        record.pending_reason or "",
    )
