"""How the page is used: on a phone, in the dark, and without a mouse."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import PHONE, Site, shoot

pytestmark = pytest.mark.slow

# Text that is less than 4.5 times as bright (or dark) as what is behind it, by the formula of WCAG 2.
FAINT_TEXT = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const read = (color) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const bright = ([r, g, b]) => [r, g, b].map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
    const behind = (node) => {
        for (let each = node; each; each = each.parentElement) {
            const color = read(getComputedStyle(each).backgroundColor);
            if (color[3] === 255) return color;
        }
        return [255, 255, 255, 255];
    };
    const faint = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
        if (!own || !node.checkVisibility() || node.disabled) continue;
        const both = [read(getComputedStyle(node).color), behind(node)];
        const [a, b] = both.map(bright).sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${node.className}: ${node.textContent}`);
    }
    return faint;
}"""

# Controls that a screen reader could not name.
UNNAMED = """() => [...document.querySelectorAll("button, a, input, select, textarea, progress, meter, nav")]
    .filter((each) => !(each.ariaLabel || each.getAttribute("aria-labelledby") || each.textContent.trim()
        || each.labels?.length)).map((each) => each.outerHTML)"""


@pytest.fixture(scope="module")
def jobs(site: Site) -> dict[str, str]:
    """One job of each kind that looks different."""
    long = "esx-07-datastore-of-the-very-long-name-web-frontend-0001-disk0"
    image = f"/srv/images/{'a-long-directory/' * 5}{long}.vmdk"
    found = {
        "running": site.submit(job_id=f"{long}-running", seconds=55, image=image),
        "failed": site.submit(job_id=f"{long}-failed", fail="NO_SPACE", image=image),
        "done": site.submit(seconds=0.5),
    }
    site.end(found["done"])
    return found


VIEWS = ("jobs", "fleet", "lanes", "job/{running}", "job/{failed}", "job/{done}")


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_has_nothing_to_scroll_sideways(
    site: Site, page: Page, jobs: dict[str, str], view: str
) -> None:
    page.set_viewport_size(PHONE)
    site.open(page, f"/{view.format(**jobs)}")
    expect(page.get_by_text("Reading…")).to_have_count(0)
    shoot(page, f"phone-{named(view)}")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("width", [560, 950, 1024, 1280])
@pytest.mark.parametrize("view", ["jobs", "fleet"])
def test_no_other_width_has_either(
    site: Site, page: Page, jobs: dict[str, str], view: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    site.open(page, f"/{view}")
    expect(
        page.get_by_role("row").filter(has_text="BUSY" if view == "fleet" else jobs["done"])
    ).to_have_count(1)
    shoot(page, f"{view}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def named(view: str) -> str:
    return re.sub(r"\W+", "-", view).strip("-")


@pytest.mark.parametrize("dialog", ["Submit a job", "Cancel"])
def test_dialogs_fit_a_phone(site: Site, page: Page, jobs: dict[str, str], dialog: str) -> None:
    page.set_viewport_size(PHONE)
    site.open(page, f"/job/{jobs['running']}")
    page.get_by_role("button", name=dialog).click()
    shoot(page, f"phone-{named(dialog)}")
    box = page.get_by_role("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_text_stands_out_from_its_background(
    site: Site, page: Page, jobs: dict[str, str], view: str, scheme: str
) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    site.open(page, f"/{view.format(**jobs)}")
    expect(page.get_by_text("Reading…")).to_have_count(0)
    shoot(page, f"{scheme}-{named(view)}")
    assert page.evaluate(FAINT_TEXT) == []


def test_dark_is_dark(site: Site, page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    site.open(page)
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(17, 21, 27)"


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_has_a_name(site: Site, page: Page, jobs: dict[str, str], view: str) -> None:
    site.open(page, f"/{view.format(**jobs)}")
    expect(page.get_by_text("Reading…")).to_have_count(0)
    assert page.evaluate(UNNAMED) == []


def test_a_job_is_opened_and_cancelled_by_the_keyboard_alone(site: Site, page: Page) -> None:
    job_id = site.submit(seconds=50)
    site.open(page)
    page.get_by_label("Find jobs").press_sequentially(job_id)
    press_until_focused(page, job_id)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(job_id)
    press_until_focused(page, "Cancel")
    page.keyboard.press("Enter")
    press_until_focused(page, "Cancel the job")
    page.keyboard.press("Enter")
    expect(page.locator(".job-head .badge")).to_have_text("CANCELLED")


def press_until_focused(page: Page, words: str) -> None:
    """Walk with Tab to the control that says this; whatever has the focus shows it."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == words:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
    pytest.fail(f"Tab does not reach {words}")


def test_escape_closes_a_dialog_and_the_focus_goes_back(site: Site, page: Page) -> None:
    site.open(page)
    page.get_by_role("button", name="Submit a job").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Submit a job")).to_be_focused()


def test_the_row_that_has_the_focus_keeps_it_while_others_come(
    site: Site, page: Page, jobs: dict[str, str]
) -> None:
    site.open(page)
    page.get_by_role("link", name=jobs["done"]).focus()
    later = site.submit()
    expect(page.get_by_role("link", name=later)).to_be_visible()
    assert page.evaluate("document.activeElement.textContent") == jobs["done"]
