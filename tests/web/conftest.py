"""A bus, the page's server, and a headless browser in front of both."""

import concurrent.futures
import contextlib
import json
import secrets
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec
import nkeys
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Playwright,
    ViewportSize,
    expect,
    sync_playwright,
)

import h2kbus
from h2kbus.accounts import API_PREFIX, BUS_ACCOUNT, User, accounts
from h2kbus.client import Bus
from h2kbus.settings import ConnectionSettings
from subjects.grammar import Grammar
from subjects.permissions import Role, inbox_prefix
from subjects.record import JobRecord
from tests.conftest import (
    REHEARSE,
    Program,
    environment,
    read_ready,
    rehearsal,
)
from tests.servers import start_server, wheel_server

T = TypeVar("T")

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
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PASSWORD = "made-up"
PHONE: ViewportSize = {"width": 360, "height": 740}


class Site(msgspec.Struct, frozen=True):
    """A bus with one worker, and the page for it."""

    program: Program
    page: str
    link: str
    websocket: str

    @property
    def place(self) -> Path:
        return self.program.place

    def do(self, work: Callable[[Bus], Awaitable[T]]) -> T:
        """Something by our own client, in a thread of its own: the browser's event loop has this one."""

        async def connected() -> T:
            settings = ConnectionSettings.resolve({}, self.program.environment)
            async with h2kbus.connect(settings=settings, submitter="tester") as bus:
                return await work(bus)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(anyio.run, connected).result()

    def submit(self, **job: Any) -> str:
        return self.do(lambda bus: bus.submit(rehearsal(**job)))

    def end(self, job_id: str) -> JobRecord:
        """The job's record once it has ended."""
        return self.do(lambda bus: bus.result(job_id))

    def record(self, job_id: str) -> JobRecord:
        return self.do(lambda bus: bus.status(job_id))

    def cancel(self, job_id: str) -> None:
        self.do(lambda bus: bus.cancel(job_id))

    def open(self, page: Page, path: str = "/jobs") -> None:
        """The page at one of its views, signed in by the link."""
        page.goto(self.link)
        page.get_by_role("status").get_by_text("Connected").wait_for()
        page.goto(f"{self.page}#{path}")


class Guarded(Site, frozen=True):
    """A bus with users; `seeds` are the keys of some, by their names."""

    seeds: dict[str, str]

    def sign_in(self, page: Page, user: str) -> None:
        """By a key, as one who reaches the bus through an account of their own."""
        page.goto(self.page)
        page.get_by_label("Sign in with").select_option("nkey")
        page.get_by_label("NKey seed", exact=True).fill(self.seeds[user])
        page.get_by_text("More about this bus").click()
        page.get_by_label("Submit as").fill(user)
        page.get_by_label("Inbox prefix").fill(inbox_prefix(user))
        page.get_by_label("JetStream API prefix").fill(API_PREFIX)
        page.get_by_role("button", name="Connect").click()
        page.get_by_role("status").get_by_text("Connected").wait_for()

    def sign_in_by_password(self, page: Page, user: str, password: str = PASSWORD) -> None:
        page.goto(self.page)
        page.get_by_label("Sign in with").select_option("password")
        page.get_by_label("User", exact=True).fill(user)
        page.get_by_label("Password", exact=True).fill(password)
        page.get_by_role("button", name="Connect").click()


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


def new_key() -> tuple[str, str]:
    """A seed, and the public key of it."""
    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode()


def walled_accounts(root: str, keys: dict[str, str]) -> dict[str, Any]:
    """As `h2kbus auth` makes them, and one who signs in by a password and may cancel, but not submit."""
    roles = {"root": Role.ADMIN, "olga": Role.OBSERVER, "alice": Role.SUBMITTER}
    made = accounts([User(name=name, role=role, nkey=keys[name], root=root) for name, role in roles.items()])
    cancelling = Grammar(root).commands("canceller", "cancel")
    permissions = {"publish": {"allow": ["$JS.API.>", cancelling]}, "subscribe": {"allow": [">"]}}
    canceller = {"user": "canceller", "password": PASSWORD, "permissions": permissions}
    made[BUS_ACCOUNT]["users"].append(canceller)
    return made


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server with users and another root, a scheduler and a worker on it, and the page for it."""
    home, root, port = tmp_path_factory.mktemp("guarded"), "sites.berlin.v1", free_port()
    keys = {name: new_key() for name in ("root", "olga", "alice")}
    config = {
        "jetstream": {"store_dir": str(home / "js")},
        "accounts": walled_accounts(root, {name: public for name, (_, public) in keys.items()}),
        "websocket": {
            "listen": "127.0.0.1:-1", "no_tls": True, "allowed_origins": [f"http://127.0.0.1:{port}"],
        },
    }  # fmt: skip
    process, url = start_server(wheel_server(), home, config)
    [ports] = home.glob("*.ports")
    [websocket] = json.loads(ports.read_text())["websocket"]
    (home / "root.nk").write_text(keys["root"][0])
    told = {"H2KBUS_URL": url, "H2KBUS_ROOT": root, "H2KBUS_NKEY": str(home / "root.nk")}
    program = Program(environment(HOME=str(home), USER="tester", **told), home)
    try:
        with (
            program.started("scheduler", "--operations", REHEARSE),
            program.started("worker", "--operations", REHEARSE, "--id", "host-7") as worker,
            serving(program, "--port", port, "--websocket", websocket) as served,
        ):
            assert worker.stderr is not None
            assert any("is ready" in line for line in worker.stderr)
            seeds = {name: seed for name, (seed, _) in keys.items()}
            yield Guarded(program, served["url"], served["link"], websocket, seeds)
    finally:
        process.kill()
        process.wait()


# How long the page may take until it shows what is expected; a machine may be busy.
expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """For each module anew: while it runs, its event loop has this thread, and no test can have its own."""
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
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
    tab.on(
        "console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None
    )
    yield tab
    assert problems == []


def fill_form(page: Page, **fields: str) -> None:
    page.get_by_role("button", name="Submit a job").click()
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Submit", exact=True).click()


def shoot(page: Page, name: str) -> None:
    """Keep a picture of the page for people; continuous integration stores the directory."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
