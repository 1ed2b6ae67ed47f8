"""A Docker engine, started if there is none, and the images of the test hosts."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.engine import docker_engine
from tests.fleet.images import base_image, bus_image, nats_image


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    with docker_engine():
        yield


@pytest.fixture(scope="session")
def images(engine: None) -> str:
    """The images of compose.yaml, made of what this machine has; the name of their base."""
    base = base_image()
    nats_image(base)
    bus_image(base)
    return base


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the hosts share, as they would share a datastore; anybody may write there."""
    with tempfile.TemporaryDirectory(prefix="h2kbus-fleet-") as directory:
        shared = Path(directory)
        for each in (shared, shared / "out", shared / "small"):
            each.mkdir(exist_ok=True)
            each.chmod(0o777)
        (shared / "ledger.jsonl").touch()
        (shared / "ledger.jsonl").chmod(0o666)
        yield shared
