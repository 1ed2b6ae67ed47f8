"""Every command and program in the documents is run as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from h2kbus.cli.app import app
from h2kbus.cli.manual import manual_of
from h2kbus.cli.sample_disk import convert_sample, make_disk
from h2kbus.pull import PullRequest
from subjects.codec import decode, encode
from subjects.events import ProgressEvent
from subjects.fleet import WorkerCapabilities
from subjects.grammar import Grammar
from subjects.lease import Lease
from subjects.topology import Topology
from tests.conftest import REHEARSE, REPOSITORY, Program, environment, read_ready, rehearsal

ANY_CLIENT = "docs/any-nats-client.md"


def documents_of(repository: Path) -> list[Path]:
    """Everything that is written for readers, but the records of decisions and of changes."""
    written = (path for path in (repository / "docs").rglob("*.md") if path.parent.name != "decisions")
    return [repository / "README.md", repository / "CONTRIBUTING.md", *written]


ELSEWHERE = {
    "docs/tutorial.md": "tests/test_tutorial.py runs it as one session",
    "docs/plug-ins.md": "tests/test_plug_ins.py installs its package and runs it",
}
"""Documents whose commands are run by another test."""
DOCUMENTS = sorted(
    name
    for name in (str(path.relative_to(REPOSITORY)) for path in documents_of(REPOSITORY))
    if name not in ELSEWHERE
)
BLOCK = re.compile(r"^```(\w+)( \w+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, language: str, mark: str = "") -> list[str]:
    """The fenced blocks of one kind: `sh` is run, `sh up` is run until it is ready."""
    found = BLOCK.findall((REPOSITORY / document).read_text())
    return [text for kind, marked, text in found if (kind, marked.strip()) == (language, mark)]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("disk")
    return convert_sample(
        make_disk(place / "disk.raw", size_mib=32, content_mib=2), place / "disk.vmdk", "vmdk"
    )


@pytest.fixture
def reader(disk: Path, tmp_path: Path) -> Program:
    """A directory as a reader of one document would have it: a disk, some job files, the program on PATH."""
    shutil.copy(disk, tmp_path)
    (tmp_path / "job.json").write_bytes(encode(rehearsal(job_id="from-the-docs")))
    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join(encode(rehearsal()) for _ in range(20)))
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return Program(environment(HOME=str(tmp_path), USER="tester", PATH=path), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", [each for each in DOCUMENTS if blocks(each, "sh")])
def test_commands_run_as_they_stand(reader: Program, document: str) -> None:
    words = ("up", "--json", "--port", "0", "--data-dir", reader.place / "bus", "--operations", REHEARSE)
    with reader.started(*words) as process:
        url = read_ready(process)["url"]
        for block in blocks(document, "sh"):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", make_only_shown(block)],
                check=False, cwd=reader.place, env={**reader.environment, "H2KBUS_URL": url},
                capture_output=True, text=True, timeout=400,
            )  # fmt: skip
            assert done.returncode == 0, f"{block}\n{done.stderr}"


def make_only_shown(block: str) -> str:
    """`make` targets run this very test: here they are only asked what they would do."""
    return block.replace("make ", f"make --dry-run --directory {REPOSITORY} ").replace(
        ".ci/run", f"bash -n {REPOSITORY}/.ci/run"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "block"), [(each, block) for each in DOCUMENTS for block in blocks(each, "sh", "up")]
)
def test_servers_start_as_they_stand(reader: Program, document: str, block: str) -> None:
    [words] = [line.split()[1:] for line in block.splitlines()]
    with reader.started(*words, "--port", "0") as process:
        assert process.stderr is not None
        assert any("ready at nats://127.0.0.1:" in line for line in process.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("document", [each for each in DOCUMENTS if blocks(each, "python")])
def test_python_runs_as_it_stands(reader: Program, document: str) -> None:
    words = ("up", "--json", "--port", "0", "--data-dir", reader.place / "bus")
    with reader.started(*words) as process:
        url = read_ready(process)["url"]
        for text in blocks(document, "python"):
            here = text.replace("nats://127.0.0.1:4222", url).replace("/images", str(reader.place))
            done = subprocess.run(
                [sys.executable, "-c", here],
                check=False,
                env=with_token(reader),
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            assert "COMPLETED" in done.stdout


def with_token(reader: Program) -> dict[str, str]:
    """The token of the reader's bus, as one gives it to a NATS client."""
    return {**reader.environment, "H2KBUS_TOKEN": (reader.place / "bus" / "token").read_text()}


@pytest.mark.slow
def test_javascript_runs_as_it_stands(reader: Program) -> None:
    modules = reader.place / "node_modules"
    modules.symlink_to(REPOSITORY / "tests" / "foreign" / "node_modules")
    words = ("up", "--json", "--port", "0", "--data-dir", reader.place / "bus")
    [text] = blocks(ANY_CLIENT, "js")
    with reader.started(*words) as process:
        url = read_ready(process)["url"]
        program = reader.place / "client.mjs"
        program.write_text(text.replace("nats://127.0.0.1:4222", url).replace("/images", str(reader.place)))
        done = subprocess.run(
            ["node", program], check=False, env=with_token(reader), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "COMPLETED" in done.stdout
        assert "CANCELLED" in done.stdout


SHOWN = {kind.__name__: kind for kind in (WorkerCapabilities, PullRequest, Lease, ProgressEvent)}


@pytest.mark.parametrize("name", SHOWN)
def test_messages_are_those_of_the_contract(name: str) -> None:
    [text] = blocks(ANY_CLIENT, "json", name)
    decode(SHOWN[name], text.encode())
    assert msgspec.json.decode(text, type=dict[str, object]).keys() <= set(SHOWN[name].__struct_fields__)


def test_names_in_commands_of_the_nats_program_are_those_of_the_contract() -> None:
    commands = re.findall(r"^    nats (.+)$", (REPOSITORY / ANY_CLIENT).read_text(), re.MULTILINE)
    text = "\n".join(commands).replace("progress.>", "progress.*")
    topology = Topology(Grammar())
    streams = {each.name for each in topology.streams()}
    assert {f"KV_{name}" for name in re.findall(r"kv \w+ (\w+)", text)} <= streams
    assert {f"OBJ_{name}" for name in re.findall(r"object \w+ (\w+)", text)} <= streams
    assert set(re.findall(r"stream \w+ (\w+)", text)) <= streams
    for subject in re.findall(r"(?:sub|request) '?([\w.*-]+)", text):
        kind = subject.split(".")[2]
        (topology.grammar.parse_progress if kind == "progress" else topology.grammar.parse_command)(
            subject.replace("*", "any")
        )


@pytest.mark.slow
def test_demo_proves_the_content_equal(reader: Program) -> None:
    done = reader("demo", "--dir", reader.place / "demo")
    assert done.returncode == 0
    assert "the content was compared with disk.vmdk: equal" in done.stdout
    assert (reader.place / "demo" / "out" / "disk.qcow2").exists()


def test_manual_is_what_the_commands_say() -> None:
    """`make manual` writes it anew."""
    assert (REPOSITORY / "docs" / "cli.md").read_text() == manual_of(app)


def test_manual_has_every_command_and_keeps_its_examples() -> None:
    text = manual_of(app)
    names = {each.name or each.callback.__name__ for each in app.registered_commands if each.callback}
    assert {name for name in names if f"\n## h2kbus {name}\n" not in text} == set()
    assert r"\b" not in text
    assert "\nh2kbus submit job.json more.yaml\n" in text


def test_help_keeps_examples_as_they_stand(reader: Program) -> None:
    assert "\n    h2kbus submit job.json more.yaml\n" in reader("submit", "--help").stdout


PROMISES = "".join((REPOSITORY / "docs" / name).read_text() for name in ("guarantees.md", "security.md"))


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", PROMISES))))
def test_every_test_that_a_promise_names_is_there(named: str) -> None:
    file, _, function = named.partition("::")
    assert not function or f"def {function}(" in (REPOSITORY / file).read_text()
