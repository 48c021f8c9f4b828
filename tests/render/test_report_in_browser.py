"""The page in a real browser: it draws, sorts, prints, complains of nothing and runs nothing that is not ours."""

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from report_study import NASTY, Study
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="needs a browser and its driver: apt-get install chromium chromium-driver",
)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # Chromium refuses to run as root otherwise
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


@pytest.fixture(scope="module")
def browser(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Named, or Selenium would look for a driver in the network.
    with Chrome(options=options, service=Service(executable_path=DRIVER)) as chrome:
        chrome.get(study.page.as_uri())
        yield chrome


def column(browser: Chrome, name: str, heading: str) -> list[str]:
    """The texts of a column of the table called ``name``, top to bottom; its heading becomes ``window.heading``."""
    return browser.execute_script(
        """
        const table = document.querySelector(`table[aria-label="${arguments[0]}"]`);
        const headings = Array.from(table.tHead.rows[0].cells);
        const at = headings.findIndex(each => each.textContent === arguments[1]);
        window.heading = headings[at];
        return Array.from(table.tBodies[0].rows).map(row => row.cells[at].textContent);
        """,
        name,
        heading,
    )


def test_it_draws_and_nothing_complains(browser: Chrome, study: Study) -> None:
    pictures = browser.find_elements(By.TAG_NAME, "img")
    assert len(pictures) > 10
    assert all(
        browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", p)
        for p in pictures
    )
    assert browser.find_element(By.TAG_NAME, "h1").text == "a model on <i>pictures</i> & $x$"
    # Our style is let through by the policy, and so was the script: it made the headings buttons.
    assert (
        browser.execute_script("return getComputedStyle(document.querySelector('main')).maxWidth")
        == "1152px"
    )
    assert browser.find_elements(By.CSS_SELECTOR, "th button")
    assert browser.get_log("browser") == []
    assert NASTY[0] in browser.find_element(By.TAG_NAME, "body").text


def test_it_loads_nothing_and_the_policy_stops_what_would(browser: Chrome) -> None:
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
        )
        == 0
    )
    ran = browser.execute_script(
        """
        const injected = document.createElement('script');
        injected.textContent = 'window.injected = true';
        document.body.append(injected);
        const told = Boolean(window.injected);
        injected.remove();
        return told;
        """
    )
    assert not ran
    assert any(
        "Content Security Policy" in entry["message"] for entry in browser.get_log("browser")
    )


def test_a_click_sorts_and_another_turns_round(browser: Chrome) -> None:
    table, heading = "Every arm at every rate", "best accuracy"
    before = column(browser, table, heading)
    button = browser.execute_script("return window.heading.querySelector('button')")
    button.click()
    ascending = column(browser, table, heading)
    assert ascending == sorted(before, key=lambda told: float(told.split(" ")[0]))
    assert ascending != before
    assert browser.execute_script("return window.heading.getAttribute('aria-sort')") == "ascending"
    button.send_keys(Keys.ENTER)
    assert column(browser, table, heading) == sorted(
        before, key=lambda told: -float(told.split(" ")[0])
    )
    assert browser.execute_script("return window.heading.getAttribute('aria-sort')") == "descending"


def test_words_sort_as_words_and_what_is_missing_goes_last(browser: Chrome) -> None:
    column(browser, "Every arm at every rate", "drift")
    for _ in range(2):
        browser.execute_script("window.heading.querySelector('button').click()")
        assert column(browser, "Every arm at every rate", "drift")[-1] == "–"
    column(browser, "Every arm at every rate", "arm")
    browser.execute_script("window.heading.querySelector('button').click()")
    assert column(browser, "Every arm at every rate", "arm") == [
        "arelu",
        "arelu",
        "leaky",
        "leaky",
        "relu",
        "relu",
    ]


def test_on_a_phone_only_tables_and_figures_scroll_sideways(browser: Chrome) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_prints_with_everything_unfolded(browser: Chrome, tmp_path: Path) -> None:
    folded = "return document.querySelectorAll('details:not([open])').length"
    before = browser.execute_script(folded)
    browser.execute_script(
        "window.addEventListener('beforeprint', () => { window.left = (() => { "
        + folded
        + " })(); })"
    )
    printed = base64.b64decode(
        browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    )
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 2
    assert before > 3
    assert browser.execute_script("return window.left") == 0
    assert browser.execute_script(folded) == before
    screen = tmp_path / "screen.png"
    browser.save_screenshot(str(screen))
    with Image.open(screen) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20  # not a white page
