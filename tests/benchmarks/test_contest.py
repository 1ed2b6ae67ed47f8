"""How the figures beside other queues come about; the queues themselves run with `--peers`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.contest import Scores, figures, goals
from benchmarks.peers.contestants import CONTESTANTS, KEEPS
from tests.conftest import REPOSITORY, environment


def bench(*words: object) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "benchmarks.peers", *map(str, words)]
    return subprocess.run(
        argv, check=False, capture_output=True, text=True, cwd=REPOSITORY, env=environment(), timeout=100
    )


def test_ratio_is_the_median_of_those_within_each_round() -> None:
    """A machine that is busy in one round slows both sides of its ratio."""
    rates: dict[str, list[float]] = {"h2kbus": [100, 1000, 1000], "arq": [50, 500, 250]}
    found = figures(Scores(rates, {name: [1.0] for name in rates}))
    assert found["arq"]["h2kbus_ratio"] == 2.0
    assert found["arq"]["jobs_per_s"] == 250


def test_goal_beside_several_is_held_against_the_best_of_them() -> None:
    rates = {"h2kbus": [1000.0], "arq": [100.0], "dramatiq": [500.0]}
    [goal] = goals(rates)
    assert (goal["measured"], goal["met"]) == (2.0, False)


def test_goal_beside_those_who_were_left_out_is_not_told() -> None:
    assert goals({"h2kbus": [1000.0], "celery": [100.0]})[0]["beside"] == "celery"
    assert goals({"arq": [100.0]}) == []


def test_table_says_of_each_contestant_what_it_keeps() -> None:
    assert KEEPS.keys() == CONTESTANTS.keys()


@pytest.mark.slow
def test_unknown_contestant_is_refused_with_the_known_ones() -> None:
    done = bench("--only", "h2kbus,cron")
    assert done.returncode == 1
    assert "'cron': choose of h2kbus, bare loop, bare loop of every write, arq" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_missing_environment_is_told_with_what_makes_it(tmp_path: Path) -> None:
    done = bench("--only", "arq", "--peers", tmp_path)
    assert done.returncode == 1
    assert ".ci/setup peers" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_bus_and_bare_loop_need_no_environment_of_the_peers(tmp_path: Path) -> None:
    words = ("--only", "h2kbus,bare loop", "--jobs", 20, "--rounds", 1, "--peers", tmp_path, "--json")
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["contestants"]["h2kbus"]["ratio_to_bare"] > 0
    assert [goal["beside"] for goal in told["goals"]] == ["the bare loop of four of the eight writes"]
