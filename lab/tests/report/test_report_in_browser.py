"""The report in a real browser: light and dark, on a desk, on a phone and on paper; sorted, zoomed, and at a ratio."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from jorge_lab.report import page as report
from jorge_lab.statistics.summary import summarize
from lab.tests.factory import TWO_TASKS, comparison, falling, record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium") or not shutil.which("chromedriver"), reason="needs Chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
#: More than one task, settings, ten optimizers more, one that diverges and one that does not reach the target.
RECORDS = [
    *TWO_TASKS,
    record("adamw", 0, falling(0.02, 0, 50), task="shakespeare", setting="tuned", steps=200),
    *comparison("shakespeare", {f"other {i}": 0.01 + 0.01 * i for i in range(10)}),
]
MNIST = [r for r in RECORDS if r["task"] == "mnist"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(RECORDS, tmp_path_factory.mktemp("report"), "jorge compare mnist shakespeare", {})


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With names, amounts and intervals as long as they come."""
    labels = ("Shampoo (pytorch_optimizer)", "Jorge, interval=5, damping=0", "Jorge, preconditioner_dtype=bfloat16")
    long = {f"other {i}": label for i, label in enumerate(labels)}
    records = [
        run
        | {"label": long.get(run["optimizer"], run["label"])}
        | {"losses": [3.0] * len(run["losses"]) if run["seed"] == 1 and i % 2 else run["losses"]}
        | {"task_info": run["task_info"] | {"title": "Shakespeare's plays, character transformer"}}
        for i, run in enumerate([*RECORDS, *comparison("shakespeare", {"other 1@tuned": 0.03, "soap@tuned": 0.07})])
    ]
    return report.write(records, tmp_path_factory.mktemp("long"), "jorge compare", {})


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
    assert driver.get_log("browser") == []  # type: ignore[no-untyped-call]
    driver.quit()


def show(browser: webdriver.Chrome, page: Path, width: int = 1280, scheme: str = "light", media: str = "") -> None:
    """Open the page, everything folded as a reader finds it."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get(page.as_uri())


def unfold(browser: webdriver.Chrome) -> None:
    browser.execute_script("document.querySelectorAll('details').forEach((e) => { e.open = true; })")


def plots(browser: webdriver.Chrome, task: str = "mnist") -> list[WebElement]:
    """A task's plots, once they are drawn."""
    section = browser.find_element(By.ID, task)
    browser.execute_script("arguments[0].scrollIntoView()", section)
    found = section.find_elements(By.CLASS_NAME, "plot")
    WebDriverWait(browser, 60).until(
        lambda _: all(p.find_elements(By.CSS_SELECTOR, ".scatterlayer path") for p in found)
    )
    return found


def column(browser: webdriver.Chrome, table: str, index: int) -> list[str]:
    cells = browser.find_elements(By.CSS_SELECTOR, f"{table} tbody tr td:nth-child({index + 1})")
    return [cell.text for cell in cells]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_well(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    show(browser, page, width, scheme)
    drawn = plots(browser)
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0, "nothing is fetched"
    assert "Jorge reaches the target in" in browser.find_element(By.CLASS_NAME, "answer").text
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert len(drawn) == 2
    assert all(200 < plot.size["width"] <= width for plot in drawn)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    ink = browser.execute_script("return getComputedStyle(document.querySelector('.plot .xtitle')).fill")
    assert ink == browser.execute_script("return getComputedStyle(document.body).color")
    assert not browser.find_element(By.CLASS_NAME, "still").is_displayed()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#mnist .main tbody tr")) == 5
    details = browser.find_element(By.CSS_SELECTOR, "#mnist .options")
    assert not details.find_element(By.TAG_NAME, "table").is_displayed()
    details.find_element(By.TAG_NAME, "summary").click()
    assert "lr" in details.text


def test_a_reader_sees_picture_sentence_and_six_columns_and_nothing_else(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    plots(browser)
    for name in ("overview", "mnist", "shakespeare"):
        section = browser.find_element(By.ID, name)
        tables = [table for table in section.find_elements(By.TAG_NAME, "table") if table.is_displayed()]
        assert [table.get_attribute("class") for table in tables] == ["main"]
        assert len(tables[0].find_elements(By.TAG_NAME, "th")) == 6
        pictures = section.find_elements(By.CLASS_NAME, "panels" if name == "overview" else "plots")
        places = [e.rect["y"] for e in (*pictures, section.find_element(By.CLASS_NAME, "answer"), *tables)]
        assert places == sorted(places)
        assert len(places) == 3


def inside(browser: webdriver.Chrome, columns: int) -> list[str]:
    """The visible tables, by class and heading, of which these first columns are not within the screen as it is."""
    return list(
        browser.execute_script(
            "const [columns] = arguments; return [...document.querySelectorAll('table')].filter((table) => "
            "table.checkVisibility({contentVisibilityAuto: true}) && [...table.rows].some((row) => "
            "[...row.cells].slice(0, columns).some((cell) => cell.colSpan === 1 && "
            "(cell.getBoundingClientRect().right > innerWidth || cell.getBoundingClientRect().left < 0))))"
            ".map((table) => `${table.className}: ${table.tHead.innerText}`)",
            columns,
        )
    )


@pytest.mark.parametrize("folded", [True, False])
def test_on_a_phone_no_table_is_scrolled_for_its_first_three_columns(
    browser: webdriver.Chrome, long_page: Path, folded: bool
) -> None:
    show(browser, long_page, 360)
    if not folded:
        unfold(browser)
    tables = browser.find_elements(By.TAG_NAME, "table")
    assert sum(table.is_displayed() for table in tables) == (3 if folded else len(tables))
    assert inside(browser, 3) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    assert inside(browser, 6), "what does not fit is scrolled inside the table"


def test_of_many_curves_one_an_optimizer_is_drawn_and_a_phone_has_one_legend(
    browser: webdriver.Chrome, long_page: Path
) -> None:
    visible = "return arguments[0]._fullData.filter((t) => t.visible === true && t.mode === 'lines').map((t) => t.name)"
    legend = "return arguments[0].querySelectorAll('.legend .traces').length"
    for width, legends in ((1280, (18, 18)), (360, (15, 0))):
        show(browser, long_page, width)
        drawn = plots(browser, "shakespeare")
        names = set(browser.execute_script(visible, drawn[0])) - {"target"}
        assert len(names) == len({name.rpartition(" (")[0] for name in names})
        assert "Jorge (transferred)" in names
        assert tuple(browser.execute_script(legend, plot) for plot in drawn) == legends


def test_it_prints_still_pictures(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page, scheme="dark", media="print")
    assert not any(plot.is_displayed() for plot in browser.find_elements(By.CLASS_NAME, "plot"))
    stills = browser.find_elements(By.CLASS_NAME, "still")
    assert len(stills) == 2
    assert all(still.is_displayed() and still.size["height"] > 200 for still in stills)
    folded = "return document.querySelector('#mnist .results').checkVisibility()"
    assert browser.execute_script(folded), "what is folded is printed"
    show(browser, page)
    assert not browser.execute_script(folded)
    assert browser.execute_script("return getComputedStyle(document.body).color") == "rgb(29, 33, 38)"


def test_tables_sort_by_mouse_and_by_keyboard(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    unfold(browser)
    headings = browser.find_elements(By.CSS_SELECTOR, "#mnist .results th")
    texts = [heading.text for heading in headings]
    at = texts.index("steps to target")
    button = headings[at].find_element(By.TAG_NAME, "button")
    browser.execute_script("arguments[0].click()", button)
    assert headings[at].get_attribute("aria-sort") == "ascending"
    assert column(browser, "#mnist .results", at) == ["86", "87", "169 (168–169)", "200", "not reached"]
    button.send_keys(Keys.ENTER)
    assert headings[at].get_attribute("aria-sort") == "descending"
    assert column(browser, "#mnist .results", at)[0] == "not reached"
    headings[0].find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert headings[at].get_attribute("aria-sort") == "none"
    assert column(browser, "#mnist .results", 0) == ["AdamW", "Jorge", "Jorge", "SGD", "SGD"]
    grouped = browser.find_elements(By.CSS_SELECTOR, "#mnist .by-setting th button")
    for _ in range(2):  # either way round, what was not run stays below
        grouped[2].send_keys(Keys.ENTER)
        assert column(browser, "#mnist .by-setting", 2)[-1] == "–"


def test_plots_zoom_and_the_legend_hides_curves(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    plot = plots(browser)[0]
    traces: list[dict[str, Any]] = browser.execute_script(
        "return arguments[0].data.map(({name, x, showlegend, line}) => ({name, n: x.length, showlegend, line}))", plot
    )
    shown = [trace for trace in traces if trace["showlegend"] is not False]
    assert [trace["name"] for trace in shown][-2:] == ["Jorge (tuned)", "target"]
    assert all(trace["n"] <= 400 for trace in shown)
    assert browser.execute_script("return arguments[0].layout.yaxis.type", plot) == "log"
    before = browser.execute_script("return arguments[0]._fullLayout.xaxis.range", plot)
    plot.find_element(By.CSS_SELECTOR, "[data-title='Zoom in']").click()
    WebDriverWait(browser, 20).until(
        lambda b: b.execute_script("return arguments[0]._fullLayout.xaxis.range", plot) != before
    )
    low, high = browser.execute_script("return arguments[0]._fullLayout.xaxis.range", plot)
    assert before[0] < low < high < before[1]
    titles = {b.get_attribute("data-title") for b in plot.find_elements(By.CLASS_NAME, "modebar-btn")}
    assert not any("Share" in (title or "") for title in titles), "no button sends the chart away"
    plot.find_element(By.CLASS_NAME, "legendtoggle").click()
    hidden = "return arguments[0]._fullData.filter((t) => t.visible === 'legendonly').map((t) => t.name)"
    WebDriverWait(browser, 20).until(lambda b: b.execute_script(hidden, plot))
    assert browser.execute_script(hidden, plot) == ["SGD (transferred)"] * 2, "the line and its band"


def test_ten_optimizers_and_more_look_different(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    read = "return JSON.parse(document.getElementById('curves-shakespeare').textContent).curves"
    looks = {(c["colour"], c["dash"], c["symbol"]) for c in browser.execute_script(read)}
    assert len(looks) >= 14


def test_the_first_table_is_sorted_and_sorts(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    headings = browser.find_elements(By.CSS_SELECTOR, "#mnist .main th")
    assert [heading.get_attribute("aria-sort") for heading in headings] == ["none", "ascending", *["none"] * 4]
    assert column(browser, "#mnist .main", 1) == ["86", "87", "169", "200", "not reached"]
    headings[4].find_element(By.TAG_NAME, "button").click()
    assert column(browser, "#mnist .main", 4) == [
        "–",
        "slower (1.11–1.11)",
        "slower (1.68–1.71)",
        "slower (1.72–1.72)",
        "slower (never gets there)",
    ]


def test_a_hardware_ratio_computes_times_and_ranks_again(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    unfold(browser)
    rows = {row.key: row for row in summarize(MNIST)}

    def times() -> dict[tuple[str, str], str]:
        table = "#mnist .hardware"
        keys = zip(column(browser, table, 0), column(browser, table, 1), strict=True)
        names = {"Jorge": "jorge", "SGD": "sgd", "AdamW": "adamw"}
        found = zip(keys, column(browser, table, 2), strict=True)
        return {(names[label], setting): time for (label, setting), time in found}

    for key, shown in times().items():
        measured = rows[key].seconds_to_target
        assert shown == ("not reached" if measured is None else f"{measured:.2f}")
    assert list(times()) == [
        ("jorge", "transferred"),
        ("jorge", "tuned"),
        ("adamw", "transferred"),
        ("sgd", "tuned"),
        ("sgd", "transferred"),
    ]
    field = browser.find_element(By.CSS_SELECTOR, "#mnist .speed")
    field.clear()
    field.send_keys("1000")
    for key, shown in times().items():
        if rows[key].steps_to_target is not None:
            steps, model, spent = rows[key].steps_to_target, rows[key].model_ms, rows[key].optimizer_ms
            assert float(shown) == pytest.approx(steps * (model / 1000 + spent) / 1000, abs=0.0051)  # type: ignore[operator]
    assert next(iter(times())) == ("sgd", "tuned"), "where the model costs nothing, the cheap step is first"
    ranking = browser.find_element(By.CSS_SELECTOR, "#mnist .ranking").text
    assert ranking.startswith("With R = 1000: 1. SGD (tuned), 2. Jorge (transferred)")
    assert column(browser, "#mnist .hardware", 4) == ["1", "2", "3", "4", "–"]
    kept = times()
    for wrong in ("-1", "0"):
        field.clear()
        field.send_keys(wrong)
        assert field.get_attribute("aria-invalid") == "true"
    assert set(times()) == set(kept)


def test_medians_in_the_page_are_those_of_the_tables(browser: webdriver.Chrome, page: Path) -> None:
    """Each seed by itself at a ratio of 4, worked out from the records."""
    show(browser, page)
    unfold(browser)
    field = browser.find_element(By.CSS_SELECTOR, "#mnist .speed")
    field.clear()
    field.send_keys("4")
    (jorge,) = [row for row in summarize(MNIST) if row.key == ("jorge", "transferred")]
    reaches = jorge.reaches.values()
    expected = median((r.seconds - r.optimizer_seconds) / 4 + r.optimizer_seconds for r in reaches)
    cell = browser.find_element(By.CSS_SELECTOR, "#mnist .hardware tr[data-name='Jorge (transferred)'] .time")
    assert float(cell.get_attribute("data-sort") or "nan") == pytest.approx(expected)
