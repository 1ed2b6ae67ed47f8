"""Every other queue does its jobs in its own environment: `make test-peers`, or `pytest --peers`."""

import anyio
import pytest

from benchmarks.peers.contestants import CONTESTANTS, ON_NATS, ON_REDIS, PEERS, Turn
from benchmarks.peers.servers import DURABILITY
from h2kbus.cli.bench.pipeline import Cost
from h2kbus.errors import SettingsError

pytestmark = pytest.mark.slow


def play(name: str, durability: str = "no") -> Cost:
    return anyio.run(CONTESTANTS[name], Turn(jobs=50, durability=DURABILITY[durability]))


@pytest.mark.parametrize("name", PEERS)
def test_all_jobs_of_a_turn_end(name: str) -> None:
    """The client fails when one is missing."""
    cost = play(name)
    assert cost.seconds > 0
    assert cost.cpu_seconds > 0


@pytest.mark.parametrize("name", [next(iter(ON_REDIS)), next(iter(ON_NATS))])
def test_all_jobs_of_a_turn_end_where_each_write_is_synced(name: str) -> None:
    assert play(name, "always").seconds > 0


def test_turn_of_a_peer_that_fails_says_what_its_client_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(SettingsError, match="encodings"):
        play("arq")
