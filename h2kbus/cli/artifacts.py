"""The command that lists, fetches and verifies what a job's attempts have left on the bus."""

import errno
import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from h2kbus.artifacts import NAMES, Kept, kept_of, read
from h2kbus.audit import verify
from h2kbus.cli.exits import Exit, say
from h2kbus.cli.invocation import Invocation
from h2kbus.cli.jobs import JobId
from h2kbus.cli.loop import run as run_async
from h2kbus.cli.output import print_json, print_table, printable
from h2kbus.client import Bus
from h2kbus.errors import JobNotFound, SettingsError
from h2kbus.signing import read_public_keys
from subjects.record import JobRecord

STDOUT: Final = Path("-")
_SUFFIXES: Final = {"log": "log", "report": "report.json", "manifest": "manifest.json"}
_TAKEN: Final = "it exists already, and --force replaces it"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def register(app: typer.Typer) -> None:
    """Add this module's command to the program."""
    app.command()(artifacts)


def artifacts(
    context: typer.Context,
    job_id: JobId,
    get: Annotated[
        str | None, typer.Option(metavar="NAME", help="Fetch one of them: log, report or manifest.")
    ] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="The attempt. [the last one that has it]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where --get writes; - is stdout. [ID.ATTEMPT.NAME in this directory]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --get replace a file.")] = False,
    check: Annotated[
        bool, typer.Option("--verify", help="Check the manifest, and by it everything else.")
    ] = False,
    keys: Annotated[
        Path | None, typer.Option(help="File with public keys of workers, one a line, for --verify.")
    ] = None,
) -> None:
    r"""Show what a job's attempts have left on the bus: logs, reports and manifests.

    A manifest says what an attempt was made of, so that it can be run again: the job, the versions of its
    tools, their command lines, sizes and checksums, and times. --verify holds it against the job's record and
    its signature, and then logs, reports, and those disks that are on this host, against it. The exit code is
    1 if something differs.

    \b
      h2kbus artifacts ID --get report --output -
      h2kbus artifacts ID --verify --keys workers.keys
    """
    if get is not None and check:
        raise SettingsError("--get and --verify are two things: ask for one")
    if get is not None:
        run_async(_get, context.obj, job_id, _known(get), attempt, output, force)
    elif check:
        trusted = read_public_keys(keys) if keys else None
        differs = run_async(_verify, context.obj, job_id, attempt, trusted)
        raise typer.Exit(Exit.JOB_FAILED if differs else Exit.DONE)
    else:
        run_async(_list, context.obj, job_id, attempt)


async def _list(invocation: Invocation, job_id: str, attempt: int | None) -> None:
    async with invocation.bus() as bus:
        _, found = await _kept(bus, job_id, attempt)
    if invocation.json:
        for each in found:
            print_json(_told(job_id, each))
        return
    rows = (_row(each) for each in found)
    print_table(("ATTEMPT", "NAME", "BYTES", "STORED", "SHA-256"), rows)


def _row(kept: Kept) -> tuple[object, ...]:
    artifact = kept.artifact
    facts = (
        ("unfinished", kept.stored_at, "")
        if artifact.is_open
        else (artifact.size, kept.stored_at, artifact.sha256)
    )
    return (kept.attempt, kept.name, *facts)


def _told(job_id: str, kept: Kept) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "attempt": kept.attempt,
        "name": kept.name,
        "size": kept.artifact.size,
        "sha256": kept.artifact.sha256,
        "stored_at": kept.stored_at,
        "object": kept.artifact.name,
        "finished": not kept.artifact.is_open,
    }


async def _get(
    invocation: Invocation, job_id: str, name: str, attempt: int | None, output: Path | None, force: bool
) -> None:
    async with invocation.bus() as bus:
        kept = await _newest(bus, job_id, name, attempt)
        if kept.artifact.is_open:
            raise JobNotFound(f"{kept.artifact.name} is not finished: `h2kbus logs` shows what there is")
        content = read(bus.connection, bus.topology, kept.artifact)
        if output == STDOUT:
            await _to_stdout(content)
            return
        target = output or Path(f"{job_id}.{kept.attempt}.{_SUFFIXES[name]}")
        try:
            await save(content, target, force=force)
        except FileExistsError:
            raise SettingsError(f"--output {target}: {_TAKEN}") from None
        except OSError as error:
            raise SettingsError(f"--output {target}: {error.strerror}") from None
    say(f"{target} has {kept.artifact.size} bytes")


async def _verify(
    invocation: Invocation, job_id: str, attempt: int | None, trusted: frozenset[str] | None
) -> bool:
    """Show every check; whether something differs."""
    async with invocation.bus() as bus:
        kept = await _newest(bus, job_id, "manifest", attempt)
        record = await bus.status(job_id)
        checks = [each async for each in verify(bus, record, kept.attempt, trusted)]
    if invocation.json:
        for each in checks:
            print_json(each)
    else:
        print_table(
            ("CHECK", "VERDICT", "EVIDENCE"), ((each.subject, each.verdict, each.evidence) for each in checks)
        )
    return any(each.verdict == "differs" for each in checks)


async def _kept(bus: Bus, job_id: str, attempt: int | None) -> tuple[JobRecord, list[Kept]]:
    record = await bus.status(job_id)
    # An attempt that was handed back is not counted, and may have left something.
    found = await kept_of(bus.connection, bus.topology, job_id, record.attempt + 1)
    return record, [each for each in found if attempt in (None, each.attempt)]


async def _newest(bus: Bus, job_id: str, name: str, attempt: int | None) -> Kept:
    record, kept = await _kept(bus, job_id, attempt)
    found = [each for each in kept if each.name == name]
    if not found:
        raise JobNotFound(why_none(record, attempt, name))
    return found[-1]


def why_none(record: JobRecord, attempt: int | None, name: str) -> str:
    """Why an attempt, or the whole job, has no such thing on the bus."""
    which = f"attempt {attempt} of job {record.job_id}" if attempt else f"job {record.job_id}"
    if record.spec is not None and not record.spec.artifacts.log_upload:
        return f"{which} has no {name} on the bus: it was submitted with log_upload: false"
    if not record.state.terminal:
        return f"{which} has no {name} on the bus yet: the job is {record.state}"
    return f"{which} has no {name} on the bus"


def _known(name: str) -> str:
    if name not in NAMES:
        raise SettingsError(f"--get {name!r}: an attempt has {', '.join(NAMES)}, and nothing else")
    return name


async def _to_stdout(content: AsyncIterator[bytes]) -> None:
    """As it is for a program, and as text for a terminal: whoever may write artifacts wrote it."""
    async for chunk in content:
        if sys.stdout.isatty():
            sys.stdout.write("\n".join(map(printable, chunk.decode("utf-8", "replace").split("\n"))))
        else:
            sys.stdout.buffer.write(chunk)
    sys.stdout.flush()


async def save(content: AsyncIterator[bytes], target: Path, *, force: bool) -> None:
    """Write a file that is there whole or not at all.

    Raises OSError, for one that exists too unless `force` is given.
    """
    draft, descriptor = _draft(target, force=force)
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for chunk in content:
                file.write(chunk)
        _give_name(draft, target, force=force)
    finally:
        draft.unlink(missing_ok=True)


def _draft(target: Path, *, force: bool) -> tuple[Path, int]:
    """A new file beside the target, which is looked at before anything is fetched."""
    if not target.name or target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not force and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, _TAKEN)
    draft = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
    return draft, os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _give_name(draft: Path, target: Path, *, force: bool) -> None:
    if not force:
        try:
            os.link(draft, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Where there are no hard links, an empty file holds the name until the rename.
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
        else:
            return
    draft.replace(target)
