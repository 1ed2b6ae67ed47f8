"""`bench`: each part measures on real processes what it says. What comes out is not asserted."""

import itertools
import json
from types import ModuleType
from typing import Any

import pytest

from h2kbus.cli.bench import PARTS, convert, depth, durability, history, latency, memory, pipeline, report
from h2kbus.cli.bench.fleet import running_fleet
from h2kbus.cli.bench.latency import Goal, figures
from h2kbus.replicas import read_copies
from subjects.topology import Topology
from tests.conftest import REPOSITORY, Program

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FEW = 20


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of everything that has several."""
    for module in (pipeline, depth, history, durability):
        monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(memory, "STEPS", 2)


async def found(module: ModuleType) -> dict[str, Any]:
    figures: dict[str, Any] = await module.measure(FEW)
    return figures


async def test_pipeline_is_told_beside_the_bare_loop(once: None) -> None:
    told = await found(pipeline)
    assert told["jobs"] == told["synced"]["jobs"] == FEW
    assert told["ratio"] > 0
    assert told["ratio_to_every_write"] > 0


async def test_latency_is_told_for_a_start_a_word_and_a_stop_beside_what_is_wanted(once: None) -> None:
    told = await found(latency)
    wanted = {name: (each["wanted_p50_ms"], each["wanted_p99_ms"]) for name, each in told.items()}
    assert wanted == {
        "submit_call_to_running": (3, 10),
        "submit_return_to_running": (None, None),
        "unsynced_submit_call_to_running": (3, 10),
        "unsynced_submit_return_to_running": (None, None),
        "event_to_foreign_subscriber": (None, 5),
        "cancel_call_to_process_dead": (None, 500),
    }
    assert all(each["samples"] > 0 and each["p50_ms"] > 0 for each in told.values())


async def test_depth_is_told_with_the_memory_of_every_process(once: None) -> None:
    told = await found(depth)
    assert told["queued"] == FEW
    assert told["memory"].keys() == {"server", "scheduler", "worker"}


async def test_history_is_told_beside_a_bus_without_any(once: None) -> None:
    told = await found(history)
    assert told["finished"] == FEW
    assert told["ratio"] > 0


async def test_durability_is_told_in_one_table(once: None, capsys: pytest.CaptureFixture[str]) -> None:
    told = await found(durability)
    assert told.keys() == durability.MODES.keys()
    report({"durability": told})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        "jobs_per_s",
        "slowest",
        "fastest",
        "of_default",
        "cpu_ms_per_job",
        "outlives",
    ]
    assert len(lines) == 2 + len(durability.MODES)


async def test_fleet_of_three_replicas_has_three_copies_of_every_stream() -> None:
    async with running_fleet(sync_always=False, replicas=3) as fleet:
        copies = await read_copies(fleet.bus.connection, Topology(fleet.bus.grammar, 3))
        assert {each.current for each in copies if each.consumer is None} == {3}
        assert fleet.processes.keys() == {"server_1", "server_2", "server_3", "scheduler", "worker"}


async def test_memory_is_told_of_every_process(once: None) -> None:
    told = await found(memory)
    assert told.keys() == {"server", "scheduler", "worker"}


def test_goal_is_missed_by_one_percentile_alone() -> None:
    seconds = [0.002] * 99 + [0.020, 0.020]
    assert figures(seconds, Goal(p50_ms=3, p99_ms=10))["met"] is False
    assert figures(seconds, Goal(p50_ms=3))["met"] is True
    assert figures(seconds)["met"] is None


def test_program_measures_one_part_with_so_many_jobs(local: Program) -> None:
    told = json.loads(local("bench", "--only", "history", "--jobs", FEW, "--json", timeout=110).stdout)
    assert told["history"]["finished"] == FEW


def test_document_tells_how_each_part_is_measured() -> None:
    text = (REPOSITORY / "docs" / "performance.md").read_text()
    assert [part for part in PARTS if f"`h2kbus bench --only {part}`" not in text] == []


def test_unknown_part_is_refused_with_the_known_ones(local: Program) -> None:
    done = local("bench", "--only", "speed")
    assert done.returncode == 2
    assert all(part in done.stderr for part in PARTS)


async def test_every_source_goes_to_every_target_from_a_sparse_and_a_full_disk() -> None:
    found = await convert.measure(size_mib=8, rounds=1)
    cells = [(each["disk"], each["source"], each["target"]) for each in found["cells"]]
    names = [each.name for each in convert.SOURCES], [each.name for each in convert.TARGETS]
    assert cells == list(itertools.product(convert.DENSITY, *names))
    assert all(each[figure] > 0 for each in found["cells"] for figure in ("defaults", "options", "proven"))
