"""The report in a real browser: light and dark, on a desk and on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from jorge.lab import report
from jorge.lab.summary import summarize
from jorge.lab.tasks import TASKS
from tests.lab.test_summary import BROKEN, JORGE, SGD

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium") or not shutil.which("chromedriver"), reason="needs Chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [*SGD, *JORGE, *BROKEN]
    section = report.Section(TASKS["mnist"], records, summarize(TASKS["mnist"], records), None)
    return report.write([section], tmp_path_factory.mktemp("report"), "jorge compare mnist")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    for argument in ("--disable-background-networking", "--disable-component-update", "--disable-sync"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_well(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []  # type: ignore[no-untyped-call]
    assert "Jorge reaches the target in the fewest steps" in browser.find_element(By.CLASS_NAME, "answer").text
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    plots = browser.find_elements(By.CSS_SELECTOR, ".plots svg")
    assert len(plots) == 2
    assert all(200 < plot.size["width"] <= width for plot in plots)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    ink = browser.execute_script("return getComputedStyle(document.querySelector('.plots svg text')).fill")
    assert ink == browser.execute_script("return getComputedStyle(document.body).color")
    assert len(browser.find_elements(By.CSS_SELECTOR, "section > .scroll tbody tr")) == 3
    details = browser.find_element(By.TAG_NAME, "details")
    details.click()
    assert "lr" in details.text
