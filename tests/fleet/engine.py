"""A Docker engine: the one that runs here, or one that is started for the tests and ends with them."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Final

import pytest

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0


def _answers() -> bool:
    return subprocess.run(["docker", "info"], check=False, capture_output=True, timeout=60).returncode == 0


@contextlib.contextmanager
def docker_engine() -> Iterator[None]:
    """While the context lasts, an engine answers. Fails the test where there is none to be had."""
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
        try:
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
