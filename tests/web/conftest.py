"""A bus, the page's server, and a headless browser in front of both."""

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from tests.conftest import REHEARSE, Program, environment, read_ready

SCREENSHOTS = Path(__file__).parent / "screenshots"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}


class Site(msgspec.Struct, frozen=True):
    """A bus with one worker, and the page for it."""

    program: Program
    page: str
    link: str
    websocket: str

    @property
    def place(self) -> Path:
        return self.program.place


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(program: Program, *words: object) -> Iterator[dict[str, Any]]:
    """`h2kbus dashboard` beside the test; what its line says."""
    with program.started("dashboard", "--json", *words) as process:
        yield read_ready(process)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`h2kbus up` and `h2kbus dashboard` as a user starts them."""
    home = tmp_path_factory.mktemp("site")
    program, port = Program(environment(HOME=str(home), USER="tester"), home), free_port()
    words = ("--json", "--port", "0", "--data-dir", home / "data", "--operations", REHEARSE)
    with program.started("up", *words, "--page-origin", f"http://127.0.0.1:{port}") as process:
        ready = read_ready(process)
        program.environment["H2KBUS_URL"] = ready["url"]
        with serving(program, "--port", port, "--websocket", ready["websocket"]) as served:
            yield Site(program, served["url"], served["link"], ready["websocket"])


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    binary = shutil.which("chromium")
    assert binary is not None, "chromium is not installed: .ci/setup web installs it"
    browser = playwright.chromium.launch(executable_path=binary, args=list(FLAGS))
    yield browser
    browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    opened = chromium.new_context(viewport=DESKTOP)
    opened.set_default_timeout(15_000)
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """An empty tab. A script error, or anything that the page's policy blocks, fails the test."""
    tab = context.new_page()
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)
    yield tab
    assert problems == []


def shoot(page: Page, name: str) -> None:
    """Keep a picture of the page for people; continuous integration stores the directory."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
