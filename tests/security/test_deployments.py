"""What is shipped to run workers with gives them roots."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.conftest import REPOSITORY

ROOTS: Final = ("H2KBUS_IMAGE_ROOTS", "H2KBUS_OUTPUT_ROOTS")


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize(
    ("file", "root"),
    [("deploy/systemd/h2kbus-worker@.service", "/srv/images"), ("Dockerfile", "/images")],
)
def test_unit_and_container_image_give_roots(file: str, root: str, name: str) -> None:
    settings = re.split(r"\s|Environment=", (REPOSITORY / file).read_text())
    assert f"{name}={root}" in settings


def workers_of(compose: Path) -> dict[str, Any]:
    services = yaml.safe_load(compose.read_text())["services"]
    return {name: each for name, each in services.items() if each.get("command", [""])[0] == "worker"}


def test_every_worker_of_the_compose_file_is_given_roots() -> None:
    workers = workers_of(REPOSITORY / "compose.yaml")
    assert set(workers) == {"plain", "guests"}
    for service in workers.values():
        words = service["command"]
        assert words[words.index("--image-root") + 1] == words[words.index("--output-root") + 1] == "/images"
