"""Who may import whom, how long things may be, and what a plain `import h2kbus` loads."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment

PACKAGES = ("subjects", "h2kbus", "scheduler", "workers")
OURS = frozenset(PACKAGES)
LONGEST_FILE = 350
LONGEST_FUNCTION = 60

NATS_IMPORTS = {
    "h2kbus.answers": "types the answers that it reads",
    "h2kbus.backup": "types the chunks of a stream",
    "h2kbus.wire": "is the client, with two paths cut short",
    "h2kbus.client_errors": "maps the client's errors",
    "h2kbus.connection": "makes the client's connection",
    "h2kbus.handshake": "reads what the client learnt of the server",
    "h2kbus.inbox": "publishes requests over the client",
    "h2kbus.pull": "types the messages and the subscription of a pull",
    "h2kbus.watch": "types the live messages of a job",
    "h2kbus.cli.bench.bare": "is the bare NATS loop that the bus is measured beside",
    "h2kbus.cli.bench.latency": "hears progress as a plain NATS client, the way foreign subscribers do",
    "workers.lanes": "types the announcements of lanes",
    "workers.orders": "types the orders of operators",
    "workers.service": "types the scheduler's hints",
}

BUS_SIDE = ("h2kbus.connection", "h2kbus.client", "h2kbus.store", "h2kbus.pull")

ALLOWED = {
    "subjects": ("subjects",),
    "h2kbus": ("subjects", "h2kbus"),
    "scheduler": ("subjects", "h2kbus", "scheduler"),
    "workers": ("subjects", "h2kbus", "workers"),
    "h2kbus.cli": ("subjects", "h2kbus", "scheduler", "workers", "h2kbus.cli"),
}
"""What each part may import of ours; `h2kbus` is the library, without its command line."""


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(file): file for package in PACKAGES for file in sorted((REPOSITORY / package).rglob("*.py"))
}
TREES = {name: ast.parse(file.read_bytes()) for name, file in MODULES.items()}
FILES = [
    *MODULES.values(),
    *(file for folder in ("benchmarks", "tests") for file in sorted((REPOSITORY / folder).rglob("*.py"))),
]


def part_of(module: str) -> str:
    cli = within(module, "h2kbus.cli") or module == "h2kbus.__main__"
    return "h2kbus.cli" if cli else module.partition(".")[0]


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def named(module: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The full names of the modules that these import statements name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, f"{module} imports relatively"
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            yield from [each for each in submodules if each in MODULES] or [base]


def all_imports(module: str) -> set[str]:
    """Those inside functions too."""
    return set(named(module, ast.walk(TREES[module])))


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from outside_functions(child)


def imports_at_load(module: str) -> set[str]:
    return set(named(module, outside_functions(TREES[module]))) & MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_part_may(module: str) -> None:
    allowed = ALLOWED[part_of(module)]
    ours = {each for each in all_imports(module) if each.partition(".")[0] in OURS}
    assert {each for each in ours if part_of(each) not in allowed} == set()


@pytest.mark.parametrize("module", [each for each in MODULES if within(each, "subjects")])
def test_the_wire_contract_needs_msgspec_and_the_standard_library_only(module: str) -> None:
    roots = {each.partition(".")[0] for each in all_imports(module)}
    assert roots - sys.stdlib_module_names <= {"msgspec", "subjects"}


@pytest.mark.parametrize("module", [each for each in MODULES if within(each, "workers.operations")])
def test_an_operation_sees_its_job_and_not_the_bus(module: str) -> None:
    assert all_imports(module) & set(BUS_SIDE) == set()


def test_the_nats_client_is_imported_by_few_modules_each_for_a_reason() -> None:
    found = {name for name in MODULES if any(within(each, "nats") for each in all_imports(name))}
    assert found == NATS_IMPORTS.keys()


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph: Mapping[str, set[str]] = {name: imports_at_load(name) - {name} for name in MODULES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def loaded_by(module: str, unwanted: Iterable[str]) -> list[str]:
    """Which of the unwanted modules a fresh interpreter has after importing this one."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        check=True, capture_output=True, text=True, env=environment(), timeout=20,
    )  # fmt: skip
    loaded = done.stdout.split()
    return [each for each in unwanted if each in loaded]


def test_import_h2kbus_loads_no_worker_scheduler_or_command_line() -> None:
    unwanted = ("workers", "scheduler", "h2kbus.cli", "rich", "typer", "yaml", "psutil")
    assert loaded_by("h2kbus", unwanted) == []


EXTRAS = ("prometheus_client", "opentelemetry", "google.protobuf", "requests")


@pytest.mark.parametrize(
    "module",
    [
        "h2kbus",
        "h2kbus.telemetry",
        "h2kbus.cli.app",
        "h2kbus.cli.processes",
        "workers.service",
        "scheduler.service",
    ],
)
def test_what_metrics_and_spans_need_is_loaded_only_where_they_are_asked_for(module: str) -> None:
    assert loaded_by(module, EXTRAS) == []


def test_the_command_line_loads_schedulers_and_workers_only_when_it_runs_them() -> None:
    assert loaded_by("h2kbus.cli.app", ("workers", "scheduler", "psutil")) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_file_is_short_enough_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short_enough_to_read(module: str) -> None:
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(TREES[module])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}
