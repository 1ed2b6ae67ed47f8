"""Commands that make and show a fleet's users, their keys, and its servers' configuration."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
import yaml

from h2kbus.accounts import User
from h2kbus.cli.exits import say
from h2kbus.cli.output import print_json, print_line, print_table
from h2kbus.errors import SettingsError
from subjects.grammar import DEFAULT_ROOT
from subjects.permissions import Role

if TYPE_CHECKING:
    from h2kbus.authority import Authority, Wanted

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of the fleet's keys.")]
Owner = Annotated[
    int | None, typer.Option(metavar="UID", help="Give the users' files to this user of the machine.")
]

commands = typer.Typer(
    name="auth", help="Make users, their keys, and the configuration of NATS servers.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    app.add_typer(commands)


@commands.command()
def init(
    context: typer.Context,
    directory: Directory,
    host: Annotated[
        list[str], typer.Option(metavar="HOST", help="Name or address of a server; again for each.")
    ] = [],  # noqa: B006 - typer copies it
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Where clients connect [4222].")] = None,
    max_file: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="What the streams may take on disk [any].")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A YAML list of users to make: role, name, any_id.")
    ] = None,
    owner: Owner = None,
) -> None:
    """Make the certificate authority of a fleet and the configuration of its NATS servers.

    Done again, it makes what is missing and renews certificates that end soon. No key is overwritten.
    """
    authority = _authority(directory)
    made = authority.init(host, port, max_file, _read_users(users) if users else [])
    _hand_over(authority, [user.name for user in authority.ledger().users], owner)
    _tell(context, authority, made)
    say(f"start a server: nats-server -c {authority.server / 'nats.conf'}")


@commands.command()
def add_user(
    context: typer.Context,
    directory: Directory,
    role: Annotated[Role, typer.Argument(help="What the user may do.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="For a worker also its id.")],
    any_id: Annotated[
        bool, typer.Option("--any-id", help="For workers that share this user and choose ids themselves.")
    ] = False,
    owner: Owner = None,
) -> None:
    """Make a user: its key, its certificate, and the context with which it connects.

    Servers know it once they have read access.conf again, twice: nats-server --signal reload.
    """
    authority = _authority(directory)
    root = context.obj.flags.get("root") or DEFAULT_ROOT
    made = authority.add(_wanted({"role": role, "name": name, "root": root, "any_id": any_id}))
    _hand_over(authority, [name], owner)
    _tell(context, authority, made)
    if not made:
        say(f"{name} exists already")


@commands.command()
def remove_user(
    directory: Directory,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `auth show` lists it.")],
) -> None:
    """Take a user's access away, and remove its keys here.

    Servers refuse it once they have read access.conf again: nats-server --signal reload.
    """
    _authority(directory).remove(name)
    print_line(f"{name} is no user any more")


@commands.command()
def show(
    context: typer.Context,
    directory: Directory,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show what this user may do.")] = None,
) -> None:
    """List the users of a fleet, or the subjects that one may use. No secret is shown."""
    authority = _authority(directory)
    found = [each for each in authority.ledger().users if name in (None, each.name)]
    if name is not None and not found:
        raise SettingsError(f"{directory} has no user {name}")
    if context.obj.json:
        for each in found:
            print_json({**msgspec.to_builtins(each), "grants": each.grants})
    elif name is not None:
        _show_grants(found[0])
    else:
        rows = ((each.name, each.role, each.root, _speaks_for(each), each.nkey) for each in found)
        print_table(("USER", "ROLE", "ROOT", "WORKER", "PUBLIC KEY"), rows)


def _show_grants(user: User) -> None:
    for verb, subjects in (("publish", user.grants.publish), ("subscribe", user.grants.subscribe)):
        for subject in subjects:
            print_line(f"{verb:<10} {subject}")


def _speaks_for(user: User) -> str:
    return "-" if user.role is not Role.WORKER else user.worker_id or user.name


def _authority(directory: Path) -> "Authority":
    try:
        from h2kbus.authority import Authority
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed: pip install 'h2kbus[auth]'") from None
    return Authority(directory)


def _read_users(file: Path) -> "list[Wanted]":
    try:
        listed = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"--users: {file} cannot be read: {error}") from None
    if not isinstance(listed, list):
        raise SettingsError(f"--users: {file} holds no list")
    return [_wanted(each) for each in listed]


def _wanted(fields: Any) -> "Wanted":
    from h2kbus.authority import Wanted

    try:
        return msgspec.convert(fields, Wanted)
    except msgspec.ValidationError as error:
        raise SettingsError(f"a user cannot be made so: {error}") from None


def _hand_over(authority: "Authority", names: list[str], owner: int | None) -> None:
    from h2kbus.authority import give_to

    if owner is not None:
        for name in names:
            give_to(authority.user_directory(name), owner)


def _tell(context: typer.Context, authority: "Authority", made: list[User]) -> None:
    for user in made:
        if context.obj.json:
            print_json(user)
        else:
            file = authority.user_directory(user.name) / f"{user.name}.json"
            print_line(f"{user.role} {user.name} connects with --context {file}")
