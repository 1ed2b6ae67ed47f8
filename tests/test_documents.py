"""What the documents say of commands, settings, files and each other is so."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import typer

from h2kbus.cli.app import app
from h2kbus.contexts import _FIELDS as IN_CONTEXTS
from h2kbus.settings import _NATS_VARIABLES as OF_NATS
from h2kbus.settings import ConnectionSettings
from subjects.states import TRANSITIONS, State
from tests.conftest import REPOSITORY
from tests.test_docs import documents_of

DOCS = REPOSITORY / "docs"
EVERY = [*documents_of(REPOSITORY), *(DOCS / "decisions").glob("*.md"), REPOSITORY / "CHANGELOG.md"]
NAMES = [str(path.relative_to(REPOSITORY)) for path in EVERY]
FENCED = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN: Final = {"", "text", "json", "toml", "mermaid"}
"""Kinds of blocks that hold no commands to run."""
RUN: Final = {"sh", "sh up", "python", "js"}
"""Kinds of blocks that a test runs: tests/test_docs.py, test_tutorial.py, test_plug_ins.py."""
NOT_RUN: Final = {
    "docs/any-nats-client.md": "the `nats` program is not installed; test_docs.py checks what they name",
}
"""Documents with indented commands that no test runs, and why."""
GROUP: Any = typer.main.get_command(app)
SIGNED: Final = {"h2kbus job v1 ", "h2kbus manifest v1 "}
"""What a signature's bytes begin with: no command."""


def prose(name: str) -> str:
    """A document without its fenced blocks."""
    return FENCED.sub("", (REPOSITORY / name).read_text())


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to a document's headings."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path = REPOSITORY / name
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(name)))
    for link in links:
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_document_is_reached_from_the_index() -> None:
    reached, waiting = set(), [DOCS / "README.md"]
    while waiting:
        path = waiting.pop()
        reached.add(path)
        links = re.findall(r"\]\(([^)#\s]+\.md)[)#]", path.read_text())
        found = {(path.parent / link).resolve() for link in links if not link.startswith("http")}
        waiting += [each for each in found - reached if each.exists() and each not in waiting]
    assert set(documents_of(REPOSITORY)) - reached == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_run_or_holds_no_commands(name: str) -> None:
    for kind, text in FENCED.findall((REPOSITORY / name).read_text()):
        assert kind in RUN or kind.split(" ")[0] in SHOWN, f"{kind}: {text[:80]}"


@pytest.mark.parametrize("name", [each for each in NAMES if "decisions" not in each])
def test_indented_commands_are_exceptions_with_a_reason(name: str) -> None:
    found = re.findall(r"^    (?:h2kbus|nats|docker|make|systemctl|pip) .*$", prose(name), re.MULTILINE)
    assert not found or name in NOT_RUN, found


def mentioned(name: str) -> Iterator[list[str]]:
    """Every `h2kbus ...` that the text mentions, also in what blocks show of a session."""
    text = (REPOSITORY / name).read_text()
    shown = [
        words
        for kind, block in FENCED.findall(text)
        if kind == "text"
        for words in re.findall(r"^\$ (h2kbus .+)$", block, re.MULTILINE)
    ]
    for words in (*re.findall(r"`(h2kbus [^`]+)`", prose(name)), *shown):
        if words not in SIGNED:
            yield shlex.split(words.replace("…", "").replace("...", ""))[1:]


def unknown(words: list[str]) -> str | None:
    """The first word that is no command, or no option of it; None when there is none."""
    command, waiting = GROUP, iter(words)
    known = {name: each for each in GROUP.params for name in each.opts}
    for word in waiting:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            if name not in known and name != "--help":
                return word
            if not value and name != "--help" and not getattr(known[name], "is_flag", False):
                next(waiting, None)
        elif hasattr(command, "commands") and not word.isupper():
            if word not in command.commands:
                return word
            command = command.commands[word]
            known |= {name: each for each in command.params for name in each.opts}
    return None


@pytest.mark.parametrize("name", [each for each in NAMES if "decisions" not in each])
def test_commands_that_the_text_mentions_are_there_with_their_options(name: str) -> None:
    assert [words for words in mentioned(name) if unknown(words)] == []


def test_a_command_or_an_option_that_is_not_there_is_found() -> None:
    assert unknown(["sumbit", "job.json"]) == "sumbit"
    assert unknown(["submit", "job.json", "--wiat"]) == "--wiat"
    assert unknown(["--url", "nats://a", "dead", "shew"]) == "shew"
    assert unknown(["--url", "nats://a", "dead", "show", "7", "--json"]) is None


def tables(heading: str) -> list[list[list[str]]]:
    """The tables below a heading of the page of settings: their rows' cells, without backticks."""
    section = (DOCS / "configuration.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [
        [
            [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
            for line in table.splitlines()[2:]
        ]
        for table in section.split("\n\n")
        if table.lstrip().startswith("|")
    ]


def test_every_setting_of_the_connection_is_documented_with_its_default() -> None:
    described, _ = tables("The connection")
    expected = [
        [
            f"H2KBUS_{field.name.upper()}",
            "" if field.default is None else msgspec.json.encode(field.default).decode().strip('"'),
        ]
        for field in msgspec.structs.fields(ConnectionSettings)
    ]
    assert [row[:2] for row in described] == expected
    assert all(row[2] for row in described)


def test_every_name_that_a_setting_has_elsewhere_is_documented() -> None:
    _, named = tables("The connection")
    options = {each.name: each.opts[0] for each in GROUP.params}
    theirs = {ours: field for field, ours in IN_CONTEXTS.items()}
    expected = [
        [f"H2KBUS_{name.upper()}", *(names.get(name, "") for names in (options, OF_NATS, theirs))]
        for name in ConnectionSettings.__struct_fields__
        if name in options or name in OF_NATS or name in theirs
    ]
    assert named == expected


def test_every_variable_of_a_process_is_documented_with_its_option_and_its_commands() -> None:
    expected: dict[str, tuple[str, list[str]]] = {}
    for command in sorted(GROUP.commands):
        for each in GROUP.commands[command].params:
            if each.envvar:
                expected.setdefault(each.envvar, (each.opts[0], []))[1].append(command)
    documented = {
        row[0]: (row[1], sorted(re.findall(r"\w+", row[2]))) for row in tables("Schedulers and workers")[0]
    }
    ours = {name: told for name, told in documented.items() if name.startswith("H2KBUS_")}
    assert ours == expected


def test_drawn_states_are_those_of_the_table() -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+)$", (DOCS / "how-it-works.md").read_text(), re.MULTILINE)
    assert sorted(drawn) == sorted(
        (str(before), str(after)) for before in State for after in TRANSITIONS[before]
    )


@pytest.mark.parametrize("name", ["README.md", "docs/how-it-works.md"])
def test_pictures_fit_a_terminal_of_80_columns(name: str) -> None:
    pictures = [text for kind, text in FENCED.findall((REPOSITORY / name).read_text()) if "│" in text]
    assert pictures
    assert max(len(line) for picture in pictures for line in picture.splitlines()) <= 80
