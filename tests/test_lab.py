"What a newcomer does in JupyterLab, in a real browser. Needs playwright and Debian's chromium (`make test-lab`); skipped where they are not"
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JUPYTER = shutil.which("jupyter")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (JUPYTER and shutil.which("make")), reason="needs jupyter and make")]
HERE = ROOT/"reports"/"local"   # git ignores it
RED = '[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type="application/vnd.jupyter.error"]'


def lab_command(port):
    "What `make lab` would run, without a browser of its own and without a token"
    more = f"--no-browser --ServerApp.port={port} --IdentityProvider.token= " + ("--allow-root" if os.geteuid() == 0 else "")
    said = subprocess.run(["make", "-n", "-o", "install", "lab", f"BIN={Path(JUPYTER).parent}", f"ARGS={more}"], cwd=ROOT, capture_output=True, text=True, check=True)
    return said.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "SYMBIOSIS_QUIET"} | {"PYTHONPATH": str(ROOT), "SYMBIOSIS_CACHE": os.environ.get("SYMBIOSIS_CACHE") or str(tmp_path_factory.mktemp("cache"))}
    log = open(tmp_path_factory.mktemp("lab")/"lab.log", "w")
    server = subprocess.Popen(lab_command(port), shell=True, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try: urllib.request.urlopen(f"{address}/api", timeout=1); break
        except OSError: time.sleep(.5)
    yield address
    os.killpg(server.pid, 15)
    server.wait(20)


@pytest.fixture
def tab(browser):
    found = browser.new_page(viewport=dict(width=1300, height=900))
    found.set_default_timeout(120_000)
    yield found
    found.close()


def notebook(name, *sources):
    "A notebook of these cells in `reports/local`"
    HERE.mkdir(parents=True, exist_ok=True)
    cells = [dict(cell_type="code", id=f"c{k}", metadata={}, source=s.splitlines(True), execution_count=None, outputs=[]) for k, s in enumerate(sources)]
    kernel = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    (HERE/name).write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))
    return f"reports/local/{name}"


def opened(tab, address, path):
    "A notebook in the browser, with its kernel"
    tab.goto(f"{address}/lab/workspaces/{Path(path).stem}/tree/{path}?reset")
    tab.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    tab.locator("#jp-main-statusbar", has_text=re.compile(r"\| Idle")).wait_for()   # a cell that is run before that is not run
    return tab.locator(".jp-NotebookPanel:visible")


def ran(tab, panel, text, wait=True):
    "The code cell that holds this text, after Shift-Enter"
    cell = panel.locator(".jp-CodeCell", has_text=text).first
    cell.scroll_into_view_if_needed()
    before = cell.locator(".jp-InputArea-prompt").inner_text()
    cell.locator(".cm-content").click(); tab.keyboard.press("Shift+Enter")
    if wait:
        tab.wait_for_function("([e, b]) => /\\[\\d+\\]/.test(e.innerText) && e.innerText !== b", arg=[cell.locator(".jp-InputArea-prompt").element_handle(), before])
    return cell


def test_make_lab_opens_index_and_its_links_lead_somewhere(lab, tab):
    tab.goto(lab)
    panel = tab.locator(".jp-NotebookPanel:visible")
    panel.locator("h1", has_text="symbiosis_nb").first.wait_for()
    source = "".join("".join(c["source"]) for c in json.loads((ROOT/"nbs"/"index.ipynb").read_text())["cells"] if c["cell_type"] == "markdown")
    links = [l.split("#")[0] for l in re.findall(r"\]\(([^)\s:#]+)\)", source)]
    assert len(links) > 15
    for link in links:
        path = (ROOT/"nbs"/link).resolve().relative_to(ROOT)
        assert urllib.request.urlopen(f"{lab}/api/contents/{path}?content=0").status == 200, link


def test_the_five_lines(lab, tab):
    panel = opened(tab, lab, "nbs/index.ipynb")
    cell = ran(tab, panel, "learn.show_results")
    assert cell.locator(".jp-OutputArea-output img").count() >= 1
    assert cell.locator(RED).count() == 0, cell.locator(RED).all_inner_texts()


def test_a_bar_stop_and_go_on(lab, tab, tmp_path):
    train = f'r = run("avg_pool", faces, profile="smoke", epochs=400, out={str(tmp_path)!r}); r.news'
    panel = opened(tab, lab, notebook("lab_stop.ipynb", 'from symbiosis_nb.all import *\nfaces = open_faces(profile="smoke")', train, 'print("never")'))
    ran(tab, panel, "open_faces")
    cell = ran(tab, panel, "epochs=400", wait=False)
    bar = cell.locator(".symbiosis-bar", has_text="avg_pool").locator("progress")
    bar.wait_for()
    at = lambda: tab.evaluate("() => [...document.querySelectorAll('.symbiosis-bar')].filter(b => b.innerText.includes('avg_pool')).map(b => b.firstElementChild.value)[0] ?? 0")
    while at() < 20: time.sleep(.1)
    assert cell.locator(".symbiosis-bar").count() == 1, "one bar, one line"
    tab.locator('[data-command="notebook:interrupt-kernel"]:visible, [data-jp-item-name="interrupt"]:visible').first.click()
    said = cell.locator(".jp-OutputArea-output", has_text="run the cell again to go on")
    said.wait_for()
    assert re.search(r"avg_pool, seed 0: stopped after epoch \d+ of 400: run the cell again to go on", said.inner_text())
    cell.locator(".symbiosis-bar").first.wait_for(state="detached")
    assert cell.locator(RED).count() == 0 and "Traceback" not in cell.inner_text()
    cell.locator(".cm-content").click(); tab.keyboard.press("Shift+Enter")
    bar.wait_for()
    assert at() >= 2, "the bar begins where the stopped training was"
    cell.locator(".jp-OutputArea-output", has_text="resumed after epoch").wait_for()
    cell.locator(".symbiosis-bar").first.wait_for(state="detached")
    assert cell.locator(RED).count() == 0


def test_a_smoke_card_ends_in_its_report(lab, tab, tmp_path):
    opened(tab, lab, "nbs/reproduce_celeba.ipynb").locator("a", has_text="on synthetic data").first.wait_for()
    cells = json.loads((ROOT/"nbs"/"reproduce_celeba.ipynb").read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    for name, value in dict(profile="smoke", methods="avg_pool spp_net", out=str(tmp_path)).items():
        sources[0] = re.sub(rf'(?m)^({name}: str = ).*', lambda m: m[1] + repr(value), sources[0])
    panel = opened(tab, lab, notebook("lab_celeba.ipynb", *sources))
    tab.locator(".lm-MenuBar-item", has_text="Run").first.click()
    tab.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    link = panel.locator("a", has_text="Open the report: celeba.html")
    for _ in range(300):
        if link.count(): break
        tab.wait_for_timeout(1000); tab.evaluate("() => { const n = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer'); if (n) n.scrollTop = n.scrollHeight; }")
    saved = panel.locator(RED)
    assert saved.count() == 0, saved.all_inner_texts()
    link.click()
    page = tab.frame_locator("iframe:visible").last
    page.locator("h1", has_text="CelebA, measured").wait_for()
