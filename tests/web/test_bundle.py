"""The page in the package is the one in `web/`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment

WEB = REPOSITORY / "web"
SOURCES = [each for each in sorted((WEB / "src").rglob("*")) if each.suffix in (".ts", ".tsx", ".css")]
FOREIGN = sorted((REPOSITORY / "tests" / "foreign").glob("*.mjs"))


@pytest.mark.slow
def test_it_is_what_the_sources_build() -> None:
    done = subprocess.run(
        ["node", "build.mjs", "--check"], check=False, cwd=WEB, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_its_types_fit() -> None:
    done = subprocess.run(
        ["npm", "run", "--silent", "check"], check=False, cwd=WEB, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout


def test_what_it_knows_of_the_contract_is_so() -> None:
    done = subprocess.run(
        [sys.executable, WEB / "contract.py"],
        check=True,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (WEB / "src" / "contract.json").read_text() == done.stdout


@pytest.mark.parametrize("file", [*SOURCES, *FOREIGN], ids=lambda file: file.name)
def test_source_is_short_enough_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 350


@pytest.mark.parametrize("place", [WEB, REPOSITORY / "tests" / "foreign"], ids=lambda place: place.name)
def test_lock_file_names_no_host(place: Path) -> None:
    assert "resolved" not in (place / "package-lock.json").read_text()


def test_it_loads_nothing_from_elsewhere() -> None:
    pages = REPOSITORY / "h2kbus" / "pages"
    assert "//" not in (pages / "index.html").read_text()
    assert "url(" not in (pages / "app.css").read_text()
