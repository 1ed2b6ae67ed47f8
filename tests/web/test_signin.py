"""Who may see what, and what the page says to those who may not."""

import base64
import datetime as dt
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from h2kbus.client import Bus
from h2kbus.quotas import set_quota
from scheduler.gate import PAUSE_SECONDS
from subjects.quota import Quota
from tests.conftest import Program, environment, read_ready
from tests.servers import start_server, wheel_server
from tests.web.conftest import Guarded, Site, fill_form, free_port, serving, shoot
from tests.web.jwt import UNLIMITED, Key

pytestmark = pytest.mark.slow

CHUNK = 128 << 10


def is_connected(page: Page) -> None:
    expect(page.get_by_role("status").get_by_text("Connected")).to_be_visible()


def test_an_observer_reads_everything_and_has_no_buttons_for_commands(guarded: Guarded, page: Page) -> None:
    job_id = guarded.submit(seconds=20)
    guarded.sign_in(page, "olga")
    expect(page.get_by_text("READ ONLY")).to_be_visible()
    page.get_by_role("link", name=job_id).click()
    expect(page.locator(".job-head .badge")).to_have_text("RUNNING")
    for name in ("Submit a job", "Cancel"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    shoot(page, "observer")
    page.get_by_role("link", name="Fleet").click()
    # The job's trail, which is there for a moment yet, has rows of that name too.
    expect(page.locator(".job-head")).to_have_count(0)
    expect(page.get_by_role("row", name="host-7")).to_be_visible()
    page.get_by_role("link", name="Lanes").click()
    expect(page.get_by_role("row", name="op-rehearse")).to_be_visible()
    guarded.cancel(job_id)


def test_a_submitter_submits_in_their_own_name(guarded: Guarded, page: Page) -> None:
    guarded.sign_in(page, "alice")
    fill_form(page, Operation="rehearse", Image="/x.raw", Output_directory="/out", Job_id="of-alice")
    expect(page.locator(".job-head .badge")).to_have_text("COMPLETED")
    assert guarded.record("of-alice").submitted_by == "alice"


def test_one_who_may_not_submit_in_a_name_has_no_buttons_for_it(guarded: Guarded, page: Page) -> None:
    guarded.sign_in(page, "alice")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Sign in with").select_option("nkey")
    page.get_by_label("NKey seed", exact=True).fill(guarded.seeds["alice"])
    page.get_by_text("More about this bus").click()
    page.get_by_label("Submit as").fill("bob")
    page.get_by_label("Inbox prefix").fill("_INBOX_alice")
    page.get_by_label("JetStream API prefix").fill("H2KBUS.API")
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_text("READ ONLY")).to_be_visible()


def test_a_submission_beyond_the_quota_is_refused_with_the_reason(guarded: Guarded, page: Page) -> None:
    quota = Quota(queued=0, by="root", at=dt.datetime.now(dt.UTC))
    guarded.do(lambda bus: set_quota(bus.connection, bus.topology, "alice", quota))
    # Schedulers look for new quotas at this pace; on a busy machine the page would be faster.
    time.sleep(3 * PAUSE_SECONDS)
    guarded.sign_in(page, "alice")
    fill_form(page, Operation="rehearse", Image="/x.raw", Output_directory="/out")
    expect(page.get_by_role("alert")).to_contain_text("Submit it again later", timeout=15_000)
    shoot(page, "quota")
    guarded.do(lambda bus: set_quota(bus.connection, bus.topology, "alice", None))


def test_a_command_that_is_denied_says_so(guarded: Guarded, page: Page) -> None:
    guarded.sign_in_by_password(page, "canceller")
    fill_form(page, Operation="rehearse", Image="/x.raw", Output_directory="/out")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("This user may not use sites.berlin.v1.commands.canceller.submit.")
    expect(alert).to_contain_text("Ask the bus's administrator")
    shoot(page, "denied")


@pytest.mark.parametrize(
    ("kind", "label", "secret", "words"),
    [
        ("token", "Token", "wrong", "The bus refuses these credentials."),
        ("nkey", "NKey seed", "SUAnonsense", "These are no credentials of that kind."),
        ("creds", "Content of the .creds file", "nothing", "These are no credentials of that kind."),
    ],
)
def test_credentials_that_are_wrong_are_said_to_be(
    guarded: Guarded, page: Page, kind: str, label: str, secret: str, words: str
) -> None:
    page.goto(guarded.page)
    page.get_by_label("Sign in with").select_option(kind)
    page.get_by_label(label, exact=True).fill(secret)
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_role("alert")).to_contain_text(words)
    shoot(page, f"wrong-{kind}")


def test_a_wrong_password_is_said_to_be(guarded: Guarded, page: Page) -> None:
    guarded.sign_in_by_password(page, "canceller", "guessed")
    expect(page.get_by_role("alert")).to_contain_text("The bus refuses these credentials.")


def test_a_link_with_an_old_token_leads_to_the_form_and_a_reason(guarded: Guarded, page: Page) -> None:
    page.goto(f"{guarded.page}#token=of-yesterday")
    expect(page.get_by_role("alert")).to_contain_text("makes a new token at each start")
    assert "token" not in page.url


def test_a_token_is_out_of_the_address_at_once(site: Site, page: Page) -> None:
    page.goto(site.link)
    is_connected(page)
    assert "token" in site.link
    assert "token" not in page.url


def test_a_reload_stays_signed_in_and_another_tab_does_not(
    guarded: Guarded, page: Page, context: BrowserContext
) -> None:
    guarded.sign_in(page, "olga")
    page.reload()
    is_connected(page)
    other = context.new_page()
    other.goto(guarded.page)
    expect(other.get_by_role("button", name="Connect")).to_be_enabled()


def test_signing_out_forgets_the_secret(guarded: Guarded, page: Page) -> None:
    guarded.sign_in(page, "olga")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("button", name="Connect")).to_be_enabled()
    assert page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])") == "[{},{}]"


def test_a_bus_that_went_away_is_said_to_be_gone_and_its_new_token_is_asked_for(
    program: Program, page: Page
) -> None:
    port, websocket, desk = free_port(), free_port(), free_port()
    words = (
        "up", "--json", "--port", port, "--websocket-port", websocket, "--workers", "0",
        "--page-origin", f"http://127.0.0.1:{desk}", "--data-dir", program.place / "data",
    )  # fmt: skip
    program.environment["H2KBUS_URL"] = f"nats://127.0.0.1:{port}"
    with program.started(*words) as process:
        read_ready(process)
        with serving(program, "--port", desk, "--websocket", f"ws://127.0.0.1:{websocket}") as served:
            page.goto(served["link"])
            is_connected(page)
            process.terminate()
            process.wait(15)
            expect(page.get_by_text("Reconnecting…")).to_be_visible()
            with program.started(*words) as again:
                read_ready(again)
                expect(page.get_by_role("alert")).to_contain_text(
                    "makes a new token at each start", timeout=20_000
                )


class Operated(NamedTuple):
    """The page of a bus whose users have JWTs, and the keys of an account and of a user in it."""

    page: str
    account: Key
    user: Key

    def creds(self, seconds: float) -> str:
        """The content of a .creds file that is good for so long."""
        token = self.account.claims(self.user, {"subs": -1, "data": -1, "payload": -1}, seconds=seconds)
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.user.seed}\n------END USER NKEY SEED------\n"
        )


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[Operated]:
    operator, account, user = (Key(kind) for kind in ("operator", "account", "user"))
    place = tmp_path / "server"
    config = {
        "operator": operator.claims(operator, {}),
        "resolver": "MEMORY",
        "resolver_preload": {account.public: operator.claims(account, {"limits": UNLIMITED})},
        "websocket": {"listen": "127.0.0.1:-1", "no_tls": True},
    }
    process, _ = start_server(wheel_server(), place, config)
    [ports] = place.glob("*.ports")
    [websocket] = json.loads(ports.read_text())["websocket"]
    program = Program(environment(HOME=str(tmp_path)), tmp_path)
    with serving(program, "--port", "0", "--websocket", websocket) as served:
        yield Operated(served["url"], account, user)
    process.kill()
    process.wait()


def test_credentials_that_expire_meanwhile_are_said_to_have_expired(operated: Operated, page: Page) -> None:
    page.goto(operated.page)
    page.get_by_label("Sign in with").select_option("creds")
    page.get_by_label("Content of the .creds file").fill(operated.creds(seconds=8))
    page.get_by_role("button", name="Connect").click()
    is_connected(page)
    expect(page.get_by_role("alert").get_by_text("These credentials have expired.")).to_be_visible(
        timeout=30_000
    )


@pytest.fixture
def lonely(program: Program) -> Iterator[str]:
    """The page of a bus that does not run."""
    with serving(program, "--port", "0", "--websocket", f"ws://127.0.0.1:{free_port()}") as served:
        yield served["url"]


def test_a_bus_that_is_not_there_is_named_with_what_to_check(lonely: str, page: Page) -> None:
    page.goto(lonely)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("No bus answers at ws://127.0.0.1:")
    expect(alert).to_contain_text("that its WebSocket listener is on")
    shoot(page, "unreachable")


def test_a_page_of_another_origin_may_not_connect(site: Site, page: Page, program: Program) -> None:
    with serving(program, "--port", "0", "--websocket", site.websocket) as served:
        page.goto(served["url"])
        expect(page.get_by_role("alert")).to_contain_text(f"accepts pages from {served['url'].rstrip('/')}")


def test_the_end_of_a_hundred_megabytes_of_log_is_shown(guarded: Guarded, page: Page) -> None:
    job_id = guarded.submit()
    guarded.end(job_id)
    lines = b"".join(b"%09d %s\n" % (number, b"x" * 90) for number in range(1_050_000))
    guarded.do(lambda bus: put_log(bus, job_id, lines))
    guarded.sign_in(page, "olga")
    page.goto(f"{guarded.page}#/job/{job_id}")
    log = page.get_by_role("region", name="Log")
    expect(log).to_contain_text("001049999")
    expect(log).to_contain_text("The last 64.0 KiB of 101 MiB.")
    log.get_by_role("button", name="Show more").click()
    expect(log).to_contain_text("The last 512 KiB of 101 MiB.")
    shoot(page, "log")


async def put_log(bus: Bus, job_id: str, log: bytes) -> None:
    """As an object store has it, between the chunks of another object."""
    store = bus.topology.artifacts_store
    for start in range(0, len(log), CHUNK):
        await bus.connection.publish(f"$O.{store}.C.{job_id}", log[start : start + CHUNK])
        if start % (1 << 20) == 0:
            await bus.connection.publish(f"$O.{store}.C.other", os.urandom(1024))
    name = f"{job_id}/1/log"
    info = {"name": name, "nuid": job_id, "size": len(log), "chunks": -(-len(log) // CHUNK)}
    key = base64.urlsafe_b64encode(name.encode()).decode()
    await bus.connection.publish(f"$O.{store}.M.{key}", msgspec.json.encode(info))
