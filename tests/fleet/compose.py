"""The cluster of compose.yaml, as a test runs it: real containers, each a host of its own."""

import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from h2kbus.settings import ConnectionSettings
from tests.conftest import REPOSITORY
from tests.fleet.images import docker

CHAOS: Final = "tests.chaos.operation:CHAOS"
NODES: Final = ("nats-1", "nats-2", "nats-3")
SECONDS: Final = 600


class Compose:
    """One project of `docker-compose`; `place` is shared by all of its workers, under the same path."""

    def __init__(self, place: Path, *, workers: int, lease: float, port: int) -> None:
        self.place = place
        self.port = port
        self._workers = workers
        self._project = f"h2kbus{secrets.token_hex(3)}"
        self._override = place / "override.json"
        self._override.write_text(json.dumps(_override(place, lease)))
        self._environment = {
            **os.environ,
            "H2KBUS_PORT": str(port),
            "H2KBUS_IMAGES": str(place),
            "NATS_IMAGE": "h2kbus-test-nats:wheel",
        }

    def __call__(self, *words: str) -> str:
        argv = ["docker-compose", "--project-name", self._project, "--project-directory", str(REPOSITORY)]
        argv += ["--file", str(REPOSITORY / "compose.yaml"), "--file", str(self._override), *words]
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=SECONDS, env=self._environment
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-4000:]}"
        return done.stdout

    def up(self) -> None:
        """Everything but the workers for guests, whose image takes a gigabyte."""
        scale = ["--scale", f"plain={self._workers}"]
        self("up", "--detach", "--no-build", *scale, *NODES, "scheduler-1", "scheduler-2", "plain")

    def down(self) -> None:
        self("down", "--volumes", "--timeout", "5")

    def logs(self) -> str:
        return self("logs", "--no-color", "--tail", "200")

    def settings(self, user: str) -> ConnectionSettings:
        """How a user of the project connects from this machine, with a copy of its keys."""
        [made] = self.containers("auth")
        keys = self.place / f"keys-{user}"
        docker("cp", f"{made}:/auth/users/{user}", keys)
        flags = {"context": str(keys / f"{user}.json"), "url": f"tls://127.0.0.1:{self.port}"}
        return ConnectionSettings.resolve(flags, {})

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers."""
        return self("ps", "--quiet", service).split()

    @property
    def network(self) -> str:
        return f"{self._project}_default"

    def cut_off(self, container: str) -> None:
        """Take a host off the network; nothing tells it so."""
        docker("network", "disconnect", "--force", self.network, container)

    def heal(self, container: str) -> None:
        docker("network", "connect", self.network, container)


def _override(place: Path, lease: float) -> dict[str, Any]:
    """What the campaign adds: its operation, its directory, and a short lease."""
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    tests = {"PYTHONPATH": "/campaign"}
    mounts = [f"{REPOSITORY / 'tests'}:/campaign/tests:ro", f"{place}:{place}"]
    options = ["--operations", CHAOS]
    found: dict[str, Any] = {}
    for name in ("scheduler-1", "scheduler-2"):
        command = [*services["scheduler-1"]["command"], "--lease", str(lease), *options]
        found[name] = {"command": command, "environment": tests, "volumes": mounts[:1]}
    command = ["worker", "--grace", "5", "--slots", "4", *options]
    found["plain"] = {"command": command, "environment": tests, "volumes": mounts}
    return {"version": "3.7", "services": found}
