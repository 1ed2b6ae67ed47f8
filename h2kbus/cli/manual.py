"""The manual of all commands, made from the commands themselves: `docs/cli.md` is what this returns."""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import typer

from h2kbus.cli.exits import Exit

_VERBATIM: Final = "\b\n"
"""What begins a paragraph that is shown as it stands."""
_HEAD: Final = """\
# The command line

<!-- Made by `h2kbus manual`: change the commands' own words, and `make manual` writes this anew. -->

`h2kbus COMMAND --help` shows the same in a terminal. Results go to stdout, everything for people's eyes to
stderr. How they are used together stands in the [how-to guides](README.md#how-to-guides).
"""
_ERRORS: Final = """\
An error is one line: its code, what happened, and what to do. The codes are those of job results; they never
change.
"""
_SHARED: Final = """\
## Options of every command

They may stand before or after the command. A flag beats the environment (`H2KBUS_URL`, …), which
beats the NATS context, which beats the variables that other NATS tools read (`NATS_URL`, …).
"""


def register(app: typer.Typer) -> None:
    """Add the command that prints the manual of all the others."""

    @app.command()
    def manual() -> None:
        """Print the manual of all commands, as Markdown."""
        sys.stdout.write(manual_of(app))


def manual_of(app: typer.Typer) -> str:
    """All commands as one Markdown document."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("h2kbus", [], resilient_parsing=True)
    parts = [_HEAD, _exit_codes(), _ERRORS, _SHARED, _options(group, context), _contents(group)]
    for name, command in group.commands.items():
        parts += _pages(f"h2kbus {name}", command, context)
    return "\n".join(parts).rstrip() + "\n"


def _exit_codes() -> str:
    rows = "\n".join(f"| {each.value} | {each.meaning} |" for each in Exit)
    return f"## Exit codes\n\n| code | meaning |\n| --- | --- |\n{rows}\n"


def _contents(group: Any) -> str:
    lines = (
        f"- [`h2kbus {name}`](#h2kbus-{name}): {_first_sentence(command.help or '')}"
        for name, command in group.commands.items()
    )
    return "## Commands\n\n" + "\n".join(lines) + "\n"


def _pages(path: str, command: Any, parent: Any) -> Iterator[str]:
    """A command's page, or those of its subcommands."""
    context = command.make_context(path.rpartition(" ")[2], [], parent=parent, resilient_parsing=True)
    words, examples = _divided(command.help or "")
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield f"## {path}\n\n```text\n{usage}\n```\n\n{words}\n"
    if examples:
        yield f"```text\n{examples}\n```\n"
    options = _options(command, context)
    if options:
        yield options
    for name, inner in getattr(command, "commands", {}).items():
        yield from _pages(f"{path} {name}", inner, context)


def _divided(text: str) -> tuple[str, str]:
    """A help text's paragraphs, and its examples, which are shown as they stand."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    plain = [each for each in paragraphs if not each.startswith(_VERBATIM)]
    blocks = [
        textwrap.dedent(each.removeprefix(_VERBATIM)) for each in paragraphs if each.startswith(_VERBATIM)
    ]
    return "\n\n".join(plain), "\n\n".join(blocks)


def _options(command: Any, context: Any) -> str:
    rows = [row for each in command.get_params(context) if (row := _row(each, context))]
    if not rows:
        return ""
    return "| option | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def _row(parameter: Any, context: Any) -> str | None:
    record = parameter.get_help_record(context)
    if record is None or "--help" in parameter.opts:
        return None
    name, words = (" ".join(each.split()).replace("|", "\\|") for each in record)
    return f"| `{name}` | {words} |"


def _first_sentence(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split("\n\n", maxsplit=1)[0].split())
