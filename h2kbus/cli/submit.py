"""Commands that hand in jobs: submit to a bus, or run one here."""

import getpass
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from h2kbus.cli.exits import Exit, exit_code, explain, say
from h2kbus.cli.invocation import Invocation
from h2kbus.cli.jobs import ending, outcome
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_line
from h2kbus.client import VERDICT_SECONDS, Bus
from h2kbus.documents import Defaults, read_documents
from h2kbus.errors import ErrorCode, H2KBusError, InvalidMessage, QuotaExceeded, SettingsError
from h2kbus.store import Entry
from h2kbus.verdicts import Verdict
from subjects.codec import convert
from subjects.record import JobRecord
from subjects.spec import ExecutionPolicy, JobSpec

MAX_REPORTED: Final = 20
"""After this many refusals only their number is told."""

Operation = Annotated[str | None, typer.Option(help="What to do with the image: inspect, convert, ….")]
Image = Annotated[Path | None, typer.Option(help="The disk image, by its path on the worker's host.")]
OutputDir = Annotated[Path | None, typer.Option(help="Where the results go, on the worker's host.")]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the operation; repeatable.")
]
Priority = Annotated[int | None, typer.Option(help="1 (most urgent) to 10 [5].")]
Policy = Annotated[
    list[str],
    typer.Option(
        metavar="KEY=VALUE",
        help="retry_count, timeout_seconds, idempotent, not_before or deadline; repeatable.",
    ),
]
ImageFormat = Annotated[str | None, typer.Option("--format", help="The image's format [detected].")]
Checksum = Annotated[str | None, typer.Option(help="SHA-256 of the image, verified first.")]
JobId = Annotated[str | None, typer.Option("--job-id", help="An id of your own [generated].")]
Limit = Annotated[
    list[str],
    typer.Option(metavar="LABEL=NUMBER", help="Run at most so many jobs with this label at once."),
]
Tags = Annotated[list[str], typer.Option("--tag", metavar="KEY=VALUE", help="A tag for the audit trail.")]
Plugins = Annotated[
    list[str], typer.Option("--operations", metavar="MODULE:ATTR", help="A plug-in operation to load.")
]


class Handed(msgspec.Struct):
    """What came of a submission: ids in order, specs of those whose id was given, refusals counted.

    `gone` are those of which nothing is on the bus any more; `ending` is the exit code of the worst refusal.
    """

    ids: list[str] = []
    specs: dict[str, JobSpec | None] = {}
    refused: int = 0
    gone: set[str] = set()
    ending: Exit = Exit.DONE


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    app.command()(submit)
    app.command()(run)


def submit(
    context: typer.Context,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="JSON, YAML or JSON lines; - is stdin.")
    ] = None,
    operation: Operation = None,
    image: Image = None,
    output_dir: OutputDir = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    priority: Priority = None,
    policy: Policy = [],  # noqa: B006 - typer copies it
    image_format: ImageFormat = None,
    checksum: Checksum = None,
    job_id: JobId = None,
    tags: Tags = [],  # noqa: B006 - typer copies it
    limit: Limit = [],  # noqa: B006 - typer copies it
    wait: Annotated[bool, typer.Option("--wait", "--watch", help="Follow the jobs to their end.")] = False,
) -> None:
    r"""Submit jobs and print their ids.

    They come from files or from options. Waits up to five seconds for the scheduler's verdict, so that
    an invalid job is known at once.

    \b
      h2kbus submit --operation convert --image disk.vmdk --output-dir out --wait
      h2kbus submit job.json more.yaml
      generate-jobs | h2kbus submit -
    """
    if bool(files) == bool(operation):
        raise SettingsError("give either files or --operation with --image and --output-dir")
    person = context.obj.settings().person()
    if files:
        specs = specs_of(files, output_dir, person)
    else:
        described = _described(operation, image, output_dir, settings, image_format, checksum)
        described["execution_policy"] = read_policy(policy, priority)
        described["limit"] = dict(_limit(each) for each in limit)
        specs = iter([with_audit(described, job_id, tags, person)])
    raise typer.Exit(run_async(_submit, context.obj, specs, wait))


def run(
    context: typer.Context,
    operation: Operation = None,
    image: Image = None,
    output_dir: OutputDir = None,
    settings: Settings = [],  # noqa: B006 - typer copies it
    image_format: ImageFormat = None,
    checksum: Checksum = None,
    operations: Plugins = [],  # noqa: B006 - typer copies it
) -> None:
    r"""Run one job here, without a server.

    The bus lives only as long as the job.

    \b
      h2kbus run --operation inspect --image disk.vmdk --output-dir out

    Ctrl-C cancels the job.
    """
    from h2kbus.cli.processes import run_once

    described = _described(operation, image, output_dir, settings, image_format, checksum)
    spec = with_audit(described, None, [])
    record = run_async(run_once, spec, operations)
    if context.obj.json:
        print_json(record)
    else:
        print_line(outcome(record))
    raise typer.Exit(verdict_exit(record) or ending(record.state))


async def _submit(invocation: Invocation, specs: Iterator[JobSpec], wait: bool) -> Exit:
    async with invocation.traced_bus() as bus:
        if not wait:
            return await _hand_in(bus, specs, as_json=invocation.json)
        return await _hand_in_and_follow(bus, specs, as_json=invocation.json)


async def _hand_in(bus: Bus, specs: Iterator[JobSpec], *, as_json: bool) -> Exit:
    handed = await _send(bus, specs, show_ids=not as_json)
    decided = await _verdicts(bus, handed)
    undecided = len(handed.ids) - len(decided) - len(handed.gone)
    if undecided:
        say(f"{undecided} of {len(handed.ids)} accepted by the bus, not read by a scheduler yet: they wait")
    if as_json:
        for job_id in handed.ids:
            print_json(decided.get(job_id) or {"job_id": job_id, "state": None})
    return handed.ending


async def _hand_in_and_follow(bus: Bus, specs: Iterator[JobSpec], *, as_json: bool) -> Exit:
    from h2kbus.cli.follow import follow

    handed = await _send(bus, specs, show_ids=not as_json)
    decided = await _verdicts(bus, handed)
    there = [job_id for job_id in handed.ids if job_id not in handed.gone]
    if len(decided) < len(there):
        say("no scheduler has answered yet; waiting for one (Ctrl-C leaves the jobs where they are)")
    ended = await follow(bus, there)
    for record in ended:
        if as_json:
            print_json(record)
        else:
            print_line(outcome(record))
    if handed.refused:
        return handed.ending
    return max((ending(record.state) for record in ended), default=Exit.DONE)


async def _send(bus: Bus, specs: Iterator[JobSpec], *, show_ids: bool) -> Handed:
    """Pipeline the jobs to the bus; a file that turns out bad half-way keeps what was sent before."""
    handed = Handed()
    given: list[JobSpec | None] = []

    def noting() -> Iterator[JobSpec]:
        for spec in specs:
            given.append(spec if spec.job_id else None)
            yield spec

    async for job_id in bus.submit_many(noting()):
        handed.specs[job_id] = given[len(handed.ids)]
        handed.ids.append(job_id)
        if show_ids:
            print_line(job_id)
    return handed


async def _verdicts(bus: Bus, handed: Handed) -> dict[str, JobRecord]:
    """What the scheduler says of each, for as long as it may take; refusals are explained."""
    decided: dict[str, JobRecord] = {}
    async for job_id, word in bus.verdicts(handed.specs, timeout=VERDICT_SECONDS):
        problem = refusal(word)
        if isinstance(word, Entry):
            decided[job_id] = word.record
        if problem is not None:
            handed.refused += 1
            handed.ending = max(handed.ending, exit_code(problem))
            if isinstance(word, QuotaExceeded):
                handed.gone.add(job_id)
            _report(problem, job_id, handed.refused)
    if handed.refused > MAX_REPORTED:
        say(f"{handed.refused} jobs were refused in all")
    return decided


def _report(problem: H2KBusError, job_id: str, number: int) -> None:
    if number <= MAX_REPORTED:
        explain(problem, f"job {job_id}: ")


def refusal(word: Verdict) -> H2KBusError | None:
    """Why a submission was refused, or None."""
    if not isinstance(word, Entry):
        return word
    result = word.record.result
    refused = result.error if result and word.record.attempt == 0 else None
    if refused is None or refused.code is not ErrorCode.INVALID_SPEC:
        return None
    path = str(refused.details.get("path", "$"))
    return InvalidMessage(refused.message.removeprefix(f"{path}: "), path)


def verdict_exit(record: JobRecord) -> Exit | None:
    """The exit code of a job that was refused before it ran."""
    return Exit.USAGE if refusal(Entry(record, 0)) else None


def specs_of(
    files: Sequence[str], output_dir: Path | None = None, person: str | None = None
) -> Iterator[JobSpec]:
    """The jobs in files, in order; - is stdin. Those that name nobody are requested by `person`.

    Raises InvalidMessage with the field's path.
    """
    defaults = Defaults(
        requested_by=person or _user(), output_dir=str(output_dir.absolute()) if output_dir else None
    )
    for name in files:
        source: Any = sys.stdin.buffer if name == "-" else Path(name)
        for document in read_documents(source, defaults):
            for warning in document.warnings:
                say(f"{document.origin}: {warning}")
            yield document.spec


def _described(
    operation: str | None,
    image: Path | None,
    output_dir: Path | None,
    settings: Sequence[str],
    image_format: str | None,
    checksum: str | None,
) -> dict[str, Any]:
    """The job that the options describe, as a document."""
    if operation is None or image is None or output_dir is None:
        raise SettingsError("--operation, --image and --output-dir belong together")
    return {
        "operation": operation,
        "image": {"path": str(image.absolute()), "format": image_format, "checksum": checksum},
        "artifacts": {"output_path": str(output_dir.absolute())},
        "parameters": dict(_pair("--set", each, typed=True) for each in settings),
    }


def read_policy(texts: Sequence[str], priority: int | None) -> dict[str, Any]:
    """The fields of `--policy`, and of `--priority`. Raises SettingsError for one that does not exist."""
    policy = dict(_pair("--policy", each, typed=True) for each in texts)
    for key in policy.keys() - set(ExecutionPolicy.__struct_fields__):
        known = ", ".join(ExecutionPolicy.__struct_fields__)
        raise SettingsError(f"--policy {key!r} is not known; known: {known}")
    return policy if priority is None else {**policy, "priority": priority}


def with_audit(
    document: dict[str, Any], job_id: str | None, tags: Sequence[str], person: str | None = None
) -> JobSpec:
    """The job, requested by `person`, or else by the local user. Raises InvalidMessage."""
    audit = {"requested_by": person or _user(), "tags": dict(_pair("--tag", each) for each in tags)}
    return convert(JobSpec, {**document, "job_id": job_id, "audit": audit})


def _limit(text: str) -> tuple[str, Any]:
    """`label=number`; a label may hold a `=` itself."""
    label, _, number = text.rpartition("=")
    if not (label and number.isdecimal()):
        raise SettingsError(f"--limit {text!r}: write it as label=number")
    return label, int(number)


def _pair(option: str, text: str, *, typed: bool = False) -> tuple[str, Any]:
    """`key=value`; a typed value may be any JSON, and is a text if it is none."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise SettingsError(f"{option} {text!r}: write it as key=value")
    if not typed:
        return key, value
    try:
        return key, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return key, value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
