"""What the tests that try to break in share with those of the workers."""

from pathlib import Path

import pytest

from tests.security.roots import Land
from tests.workers.conftest import Bench, bench, raw_disk, vmdk

__all__ = ["bench", "confined", "land", "raw_disk", "vmdk"]


@pytest.fixture
def land(tmp_path: Path) -> Land:
    return Land(tmp_path)


@pytest.fixture
def confined(land: Land) -> Bench:
    """Operations as a worker runs them that was given the root, into a directory below it."""
    made = Bench(land.root / "out")
    made.site = land.site
    return made
