"""A Docker engine, started if there is none, and the images of the test hosts."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.images import base_image, bus_image, nats_image

START_SECONDS = 60.0


def _answers() -> bool:
    return subprocess.run(["docker", "info"], check=False, capture_output=True, timeout=60).returncode == 0


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """A Docker engine that answers; one that was started here ends with the tests."""
    if _answers():
        yield
        return
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(["dockerd"], stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while not _answers():
            if process.poll() is not None or time.monotonic() > until:
                log.seek(0)
                pytest.fail(f"no Docker engine: {log.read().decode()[-2000:]}")
            time.sleep(0.5)
        yield
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)


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
