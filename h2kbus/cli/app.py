"""The `h2kbus` program: its commands and the edge where errors become one line and an exit code."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from h2kbus import __version__
from h2kbus.cli import (
    artifacts,
    auth,
    backup,
    dashboard,
    dead,
    fleet,
    inspection,
    jobs,
    keys,
    limits,
    logs,
    machine,
    manual,
    processes,
    quotas,
    setup,
    submit,
    top,
)
from h2kbus.cli import explain as explanation
from h2kbus.cli.exits import Exit, exit_code, explain
from h2kbus.cli.invocation import Invocation, hoist
from h2kbus.errors import H2KBusError

EPILOG = (
    "Connection options and --json may stand before or after the command. "
    "Exit codes: 0 done; 1 the job ended FAILED or CANCELLED; 2 bad usage or an invalid job; "
    "3 the bus is not reachable; 4 no such job."
)

app = typer.Typer(
    name="h2kbus",
    help="A message bus for virtual-machine disk jobs over NATS JetStream.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"h2kbus {__version__}")
        raise typer.Exit


@app.callback()
def shared(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="NATS server, or several with commas.")] = None,
    creds: Annotated[str | None, typer.Option(help="NATS credentials file.")] = None,
    nkey: Annotated[str | None, typer.Option(help="File with an NKey seed.")] = None,
    tls_ca: Annotated[str | None, typer.Option(help="Certificate authorities to trust (PEM).")] = None,
    tls_cert: Annotated[str | None, typer.Option(help="Client certificate (PEM).")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Key of the client certificate (PEM).")] = None,
    sign_key: Annotated[
        str | None, typer.Option(help="File with an NKey seed that submitted jobs are signed with.")
    ] = None,
    nats_context: Annotated[
        str | None, typer.Option("--context", help="NATS context, as `nats context ls` names it.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Root of the fleet's subjects [h2k.v1].")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options that every command shares."""
    flags = {
        "url": url,
        "creds": creds,
        "nkey": nkey,
        "tls_ca": tls_ca,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "sign_key": sign_key,
        "context": nats_context,
        "root": root,
    }
    context.obj = Invocation(flags, json)


for module in (
    submit,
    inspection,
    jobs,
    logs,
    artifacts,
    limits,
    explanation,
    dead,
    fleet,
    keys,
    quotas,
    top,
    setup,
    backup,
    auth,
    processes,
    dashboard,
    machine,
    manual,
):
    module.register(app)

for command in app.registered_commands:
    # Docstrings are raw, so that `\b`, which keeps examples as they stand, is two characters there.
    if command.callback is not None and command.callback.__doc__:
        command.callback.__doc__ = command.callback.__doc__.replace(r"\b", "\b")


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        app(hoist(sys.argv[1:]))
    except H2KBusError as error:
        sys.exit(_explained(error))
    except BaseExceptionGroup as group:
        sys.exit(_explained(first_error(group)))
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(Exit.DONE)


def _explained(error: H2KBusError) -> Exit:
    explain(error)
    return exit_code(error)


def first_error(group: BaseExceptionGroup) -> H2KBusError:
    """The error behind a task group's; anything that is no error of ours goes on as a defect."""
    ours, others = group.split(H2KBusError)
    if others is not None or ours is None:
        raise group
    leaf: BaseException = ours
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    if not isinstance(leaf, H2KBusError):
        raise group
    return leaf
