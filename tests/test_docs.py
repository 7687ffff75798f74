"The documentation site is built whole, and no link of it leads nowhere. Needs the extra docs"
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("material")
ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, str(ROOT/"scripts"/"docs.py"), str(out)], check=True)
    return out


def test_every_notebook_and_module_has_its_page(site):
    notebooks = [p for p in (ROOT/"nbs").glob("*.ipynb") if p.stem != "index"]
    assert all((site/"nbs"/f"{p.stem}.html").is_file() for p in notebooks) and (site/"index.html").is_file()
    assert "Card.leaders" in (site/"api"/"report.html").read_text() and "Where an interval lies" in (site/"api"/"stats.html").read_text()
    ids = set(re.findall(r"[a-z_]+-\d\d", (site/"how_to"/"claims.html").read_text()))
    assert len(ids) >= 137


def test_links_lead_somewhere(site):
    pages = {p: p.read_text(encoding="utf-8") for p in site.rglob("*.html") if p.name != "404.html" and "__md_scope" in p.read_text(encoding="utf-8")}
    anchors = {p: set(re.findall(r'\sid="([^"]+)"', text)) for p, text in pages.items()}
    lost = []
    for page, text in pages.items():
        shown = re.sub(r"<pre.*?</pre>", "", text, flags=re.S)   # a listing may show the text of a link
        for link in set(re.findall(r'\s(?:href|src)="([^"]*)"', shown)):
            link = unescape(link)
            if re.match(r"[a-z]+:|//", link): continue
            path, _, anchor = link.partition("#")
            target = (page.parent/unquote(path)).resolve() if path else page
            if target.is_dir(): target /= "index.html"
            there = target.is_file() and (not anchor or target not in anchors or unquote(anchor) in anchors[target])
            if not there: lost.append(f"{page.relative_to(site)}: {link}")
    assert not lost


def test_pages_load_nothing_from_elsewhere(site):
    for page in (site/"index.html", site/"nbs"/"41_plot.html", site/"api"/"report.html"):
        assert not re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="https?://(?!github\.com)[^"]*"', page.read_text(encoding="utf-8")), page
