"""Jobs in the page, end to end: a real browser, a real bus, real conversions."""

import contextlib
import datetime as dt
import os
import re

import msgspec
import pytest
from playwright.sync_api import Page, expect

from h2kbus.client import Bus
from h2kbus.log_feed import LogFeed
from subjects.spec import ArtifactPolicy
from tests.conftest import rehearsal
from tests.web.conftest import Guarded, Site, fill_form, shoot

pytestmark = pytest.mark.slow

# The bar's values, as the page shows them, from now on.
WATCH_BAR = """() => {
    window.shown = [];
    new MutationObserver(() => {
        const bar = document.querySelector("progress[aria-label=Progress]");
        if (bar && window.shown.at(-1) !== bar.value) window.shown.push(bar.value);
    }).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
}"""


def test_a_conversion_is_submitted_and_its_bar_moves_to_its_end(site: Site, page: Page) -> None:
    image = site.place / "disk.raw"
    image.write_bytes(os.urandom(128 << 20))
    site.open(page)
    page.evaluate(WATCH_BAR)
    fill_form(
        page,
        Operation="convert",
        Image=str(image),
        Output_directory=str(site.place / "out"),
        Parameters='{"output_format": "qcow2"}',
    )
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"^[0-9a-z]{20}$"))
    expect(page.locator(".job-head .badge")).to_have_text("COMPLETED", timeout=60_000)
    shoot(page, "completed")
    shown = page.evaluate("window.shown")
    assert shown[-1] == 100
    assert any(0 < value < 100 for value in shown)
    assert shown == sorted(shown)
    assert (site.place / "out" / "disk.qcow2").exists()


def test_a_running_job_is_cancelled_once_it_is_confirmed(site: Site, page: Page) -> None:
    job_id = site.submit(seconds=50)
    site.open(page, f"/job/{job_id}")
    expect(page.locator(".job-head .badge")).to_have_text("RUNNING")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_label("Reason").fill("wrong disk")
    shoot(page, "cancel")
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".job-head .badge")).to_have_text("CANCELLED")
    assert site.record(job_id).state == "CANCELLED"


def test_a_cancellation_that_is_not_confirmed_changes_nothing(site: Site, page: Page) -> None:
    job_id = site.submit(policy={"not_before": dt.datetime(2099, 1, 1, tzinfo=dt.UTC)})
    site.open(page, f"/job/{job_id}")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Keep it running").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert site.record(job_id).cancel_requested is False


def test_a_job_appears_in_the_list_by_itself_and_its_bar_is_live(site: Site, page: Page) -> None:
    site.open(page)
    job_id = site.submit(seconds=6)
    row = page.get_by_role("row", name=job_id)
    expect(row).to_contain_text("RUNNING")
    expect(row).to_contain_text("s left")
    expect(row.get_by_role("progressbar")).to_have_js_property("value", 100, timeout=30_000)


def test_a_failure_is_shown_with_its_code_and_what_to_do(site: Site, page: Page) -> None:
    job_id = site.submit(fail="NO_SPACE")
    site.open(page, f"/job/{job_id}")
    error = page.get_by_role("note", name="Error")
    expect(error).to_contain_text("NO_SPACE")
    expect(error).to_contain_text("Free space where output_path points, then retry.")
    shoot(page, "failed")


def test_an_invalid_job_ends_with_the_name_of_its_field(site: Site, page: Page) -> None:
    site.open(page)
    fill_form(page, Operation="convert", Image="/x.raw", Output_directory="/out", Parameters='{"no_such": 1}')
    expect(page.get_by_role("note", name="Error")).to_contain_text("$.parameters")


def test_a_form_that_cannot_be_right_is_not_sent(site: Site, page: Page) -> None:
    site.open(page)
    fill_form(
        page, Operation="Convert!", Image="disk.raw", Output_directory="", Parameters="{", Priority="11"
    )
    for label in ("Operation", "Image", "Output directory", "Priority", "Parameters"):
        expect(page.get_by_label(label)).to_have_attribute("aria-invalid", "true")
    shoot(page, "mistakes")


def test_an_id_that_is_taken_is_refused(site: Site, page: Page) -> None:
    job_id = site.submit()
    site.open(page)
    fill_form(page, Operation="rehearse", Image="/x.raw", Output_directory="/out", Job_id=job_id)
    expect(page.get_by_role("alert")).to_contain_text(f"A job has the id {job_id} already.")


@pytest.mark.parametrize("job_id", ["not-there", "%3Cb%3E", "a" * 200])
def test_a_job_that_is_not_there_is_said_to_be_missing(site: Site, page: Page, job_id: str) -> None:
    site.open(page, f"/job/{job_id}")
    expect(page.get_by_text("There is no job")).to_be_visible()


def test_the_audit_trail_and_the_history_are_shown(site: Site, page: Page) -> None:
    job_id = site.submit(seconds=1)
    site.open(page, f"/job/{job_id}")
    trail = page.get_by_role("region", name="Audit trail").get_by_role("row")
    expect(trail).to_have_count(1 + len(site.end(job_id).transitions))
    history = page.get_by_role("region", name="Progress").first
    expect(history.get_by_role("row").last).to_contain_text("queued")


def test_the_list_is_filtered_by_state_and_by_words(site: Site, page: Page) -> None:
    failed, done = site.submit(fail="TIMEOUT"), site.submit()
    site.open(page)
    page.get_by_role("button", name="Failed").click()
    expect(page.get_by_role("link", name=failed)).to_be_visible()
    expect(page.get_by_role("link", name=done)).to_have_count(0)
    page.get_by_role("button", name="All").click()
    page.get_by_label("Find jobs").fill(done)
    expect(page.get_by_role("row")).to_have_count(2)


def test_the_log_of_a_conversion_is_shown(site: Site, page: Page) -> None:
    image = site.place / "small.raw"
    image.write_bytes(os.urandom(1 << 20))
    spec = msgspec.structs.replace(
        rehearsal(operation="convert", image=str(image)),
        artifacts=ArtifactPolicy(output_path=str(site.place / "logged")),
    )
    job_id = site.end(site.do(lambda bus: bus.submit(spec))).job_id
    site.open(page, f"/job/{job_id}")
    expect(page.get_by_role("region", name="Log")).to_contain_text("attempt 1 of convert")


def test_the_log_of_an_attempt_is_shown_while_it_is_written(site: Site, page: Page) -> None:
    lines = [f"said {number}" for number in range(100)]
    spec = msgspec.structs.replace(
        rehearsal(log_lines=lines, log_pause=0.4),
        artifacts=ArtifactPolicy(output_path=str(site.place / "talking")),
    )
    job_id = site.do(lambda bus: bus.submit(spec))
    site.do(lambda bus: first_of_log(bus, job_id))
    site.open(page, f"/job/{job_id}")
    log = page.get_by_role("region", name="Log")
    expect(log).to_contain_text("said 4")
    expect(log).to_contain_text("said 12", timeout=20_000)
    site.cancel(job_id)


async def first_of_log(bus: Bus, job_id: str) -> None:
    """Return when some of the job's log is on the bus."""
    await bus.verdict(job_id)
    async with contextlib.aclosing(LogFeed(bus, job_id).follow()) as parts:
        async for part in parts:
            if part.content:
                return


def test_the_fleet_and_the_lanes_are_shown(site: Site, page: Page) -> None:
    job_id = site.submit(seconds=50)
    site.open(page, "/fleet")
    expect(page.get_by_role("link", name=job_id)).to_be_visible(timeout=20_000)
    expect(page.get_by_text("op-rehearse")).to_be_visible()
    shoot(page, "fleet")
    page.get_by_role("link", name="Lanes").click()
    expect(page.get_by_role("row", name="op-rehearse")).to_be_visible()
    shoot(page, "lanes")
    site.cancel(job_id)


def test_reading_makes_no_consumers(guarded: Guarded, page: Page) -> None:
    guarded.sign_in(page, "olga")
    before = guarded.do(consumers)
    job_id = guarded.submit(seconds=1)
    page.goto(f"{guarded.page}#/job/{job_id}")
    expect(page.locator(".job-head .badge")).to_have_text("COMPLETED")
    page.goto(f"{guarded.page}#/lanes")
    expect(page.get_by_role("row", name="op-rehearse")).to_be_visible()
    assert guarded.do(consumers) - before <= {"default_op-rehearse_5"}


async def consumers(bus: Bus) -> set[str]:
    """Those of every stream."""
    names = (await bus.connection.api("STREAM.NAMES"))["streams"]
    pages = [await bus.connection.api(f"CONSUMER.NAMES.{each}") for each in names]
    return {name for page in pages for name in page["consumers"] or ()}
