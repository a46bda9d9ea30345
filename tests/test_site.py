"""The site, built from the pages and looked at in a browser, on a desk and on a phone: `make docs` runs it."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import visibility_of
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
in_a_browser = pytest.mark.skipif(
    not shutil.which("chromium") or not shutil.which("chromedriver"), reason="needs Chromium"
)
WIDTHS = {"phone": 390, "desk": 1280}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the site, and what was said while it was built."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout + result.stderr


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing of what it serves."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(built: tuple[Path, str]) -> Iterator[str]:
    """Its address while it is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(built[0])))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


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


def show(browser: webdriver.Chrome, address: str, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)


def pages(folder: Path) -> list[str]:
    """The addresses of all pages, below that of the site."""
    return sorted(str(path.parent.relative_to(folder)) + "/" for path in folder.rglob("index.html"))


def test_it_is_built_without_a_warning(built: tuple[Path, str]) -> None:
    assert "WARNING" not in built[1]
    assert len(pages(built[0])) > 60


def test_a_linked_file_outside_the_pages_is_a_page(built: tuple[Path, str]) -> None:
    example = built[0] / "repository" / "examples" / "torch_amp.py" / "index.html"
    assert "GradScaler" in example.read_text(encoding="utf-8")
    assert "repository/examples/torch_amp.py/" in (built[0] / "guide" / "frameworks" / "index.html").read_text()


def test_docstrings_are_read_as_markdown(built: tuple[Path, str]) -> None:
    page = (built[0] / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert "{main}" not in page
    assert ":class:" not in page
    assert ":meth:" not in page
    assert 'id="jorge.Jorge.from_adamw"' in page
    assert "matrix_products" not in page


@in_a_browser
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_every_page_reads_well(browser: webdriver.Chrome, built: tuple[Path, str], site: str, width: int) -> None:
    """Pictures are there, nothing scrolls sideways, nothing is fetched from elsewhere, the console is empty."""
    for page in pages(built[0]):
        show(browser, site + page, width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
        missing = "return [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"
        assert browser.execute_script(missing) == [], page
        fetched = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert [name for name in fetched if not name.startswith((site, "blob:", "data:"))] == [], page
        assert browser.get_log("browser") == [], page  # type: ignore[no-untyped-call]


@in_a_browser
def test_a_phone_finds_its_way(browser: webdriver.Chrome, site: str) -> None:
    """The drawer leads from the start to a page of the guide."""
    show(browser, site, WIDTHS["phone"])
    browser.find_element(By.CSS_SELECTOR, "label.md-header__button[for=__drawer]").click()
    for title in ("Guide", "In your program", "Checkpoints"):
        links = browser.find_elements(By.CSS_SELECTOR, ".md-nav--primary .md-nav__link")
        link = next(each for each in links if (each.get_attribute("textContent") or "").strip() == title)
        WebDriverWait(browser, 20).until(visibility_of(link))
        browser.execute_script("arguments[0].click()", link)
    WebDriverWait(browser, 20).until(lambda b: b.current_url.endswith("guide/checkpoints/"))
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith("Checkpoints")


@in_a_browser
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_word_is_found(browser: webdriver.Chrome, site: str, width: int) -> None:
    show(browser, site, width)
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    field = browser.find_element(By.CSS_SELECTOR, ".md-search__input")
    WebDriverWait(browser, 20).until(lambda _: field.is_displayed() and field.is_enabled())
    field.send_keys("unscale")
    results = ".md-search-result__link"
    WebDriverWait(browser, 30).until(lambda b: b.find_elements(By.CSS_SELECTOR, results))
    found = [each.get_attribute("href") or "" for each in browser.find_elements(By.CSS_SELECTOR, results)]
    assert any("guide/mixed-precision/" in href for href in found)
    field.send_keys(Keys.ESCAPE)


@in_a_browser
def test_a_session_is_copied_without_prompts_and_answers(browser: webdriver.Chrome, site: str) -> None:
    show(browser, site + "guide/start/", WIDTHS["desk"])
    code = next(e for e in browser.find_elements(By.TAG_NAME, "code") if ">>> adamw = train" in e.text)
    assert "(True, True)" in code.text
    copied = "arguments[0].setAttribute('data-md-copying', ''); return arguments[0].innerText"  # as the button does
    text = browser.execute_script(copied, code)
    assert text.startswith("adamw = train(lambda model: torch")
    assert ">>>" not in text
    assert "True" not in text
