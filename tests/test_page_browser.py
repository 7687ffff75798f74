"The report page in a real browser: it sorts, fits a telephone, prints whole. Needs playwright and Debian's chromium; skipped where they are not"
from pathlib import Path

import pytest

from helpers import picture_table
from symbiosis_nb.page import write_html
from symbiosis_nb.report import Card
from symbiosis_nb.runs import Run, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    home = tmp_path_factory.mktemp("page")
    table = picture_table(home/"pictures")
    two = [run(m, table, "smoke", out=home/"runs", limit=None) for m in ("avg_pool", "spp_net")]
    many = [Run(two[k % 2].folder, f"method {k:02d}") for k in range(19)]
    return write_html(Card(many, table, 20, baseline="method 00"), home/"page.html").as_uri()


@pytest.mark.parametrize("width", [1300, 800, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_every_screen(browser, address, width, scheme):
    tab, said = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme), []
    tab.on("console", lambda m: said.append(m.text)); tab.on("pageerror", lambda e: said.append(str(e)))
    tab.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    tab.goto(address)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing but the tables scrolls sideways"
    assert said == []
    first = tab.locator("header tbody td").first.bounding_box()
    assert first["x"] + first["width"] <= width, "the first number is on the screen"
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    tab.close()


def test_sorts_and_opens(browser, address):
    tab = browser.new_page()
    tab.goto(address + "#accuracy-all-attributes")
    assert tab.evaluate("document.querySelector('#accuracy-all-attributes details').open"), "a link opens the section that it leads to"
    column = lambda: [float(v) for v in tab.evaluate("[...document.querySelectorAll('#accuracy-all-attributes tbody tr')].map(r => r.cells[1].textContent)")]
    heading = tab.locator("#accuracy-all-attributes thead th:nth-child(2) span")
    heading.click(); assert column() == sorted(column(), reverse=True)
    heading.press("Enter"); assert column() == sorted(column())
    tab.close()


def test_prints_whole(browser, address, tmp_path):
    pymupdf = pytest.importorskip("pymupdf")
    tab = browser.new_page(); tab.goto(address)
    tab.pdf(path=tmp_path/"page.pdf", prefer_css_page_size=True)
    pages = list(pymupdf.open(tmp_path/"page.pdf"))
    assert max(word[2] for p in pages for word in p.get_text("words")) < pages[0].rect.width - 20, "no column is cut"
    text = "".join(p.get_text() for p in pages)
    assert "Balanced accuracy, all attributes" in text and text.count("Wearing Necktie") >= 4, "folded sections are printed too"
