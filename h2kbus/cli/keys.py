"""Commands about the keys that jobs are signed with."""

from pathlib import Path
from typing import Annotated

import typer

from h2kbus.cli.exits import say
from h2kbus.cli.output import print_json, print_line
from h2kbus.signing import Signer, new_seed, write_seed

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file of the seed, which is the secret.")]

commands = typer.Typer(
    name="keys", help="Make and show keys that jobs are signed with.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    app.add_typer(commands)


@commands.command()
def new(context: typer.Context, file: File) -> None:
    """Make a key: its seed goes into a new file, its public key is printed.

    The public key is what `worker --verify-keys` reads.
    """
    seed = new_seed()
    write_seed(file, seed)
    say(f"the seed is in {file}; keep it to yourself")
    _print(context, Signer(seed))


@commands.command()
def show(context: typer.Context, file: File) -> None:
    """Print the public key that belongs to a seed."""
    _print(context, Signer.from_file(file))


def _print(context: typer.Context, signer: Signer) -> None:
    if context.obj.json:
        print_json({"public_key": signer.public_key})
    else:
        print_line(signer.public_key)
