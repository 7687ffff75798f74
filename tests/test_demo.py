"The demo page in a real browser: upload, result, two faces, no face, a file that is no picture; nothing is fetched from elsewhere."
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from symbiosis_nb import demo
from symbiosis_nb.data import crops
from symbiosis_nb.data.sources import open_faces
from symbiosis_nb.runs import Predictor, run

SERVER = """
    import sys, numpy as np
    from symbiosis_nb import demo
    from symbiosis_nb.data import crops
    def detect(image):
        "Faces by the size of the test's pictures: the real detector does not know drawings"
        at = {{520: (20, 280), 260: (40,)}}.get(image.width, ())
        marks = np.array([crops.CELEBA_TEMPLATE + (x, 60) for x in at]).reshape(-1, 5, 2)
        return crops.Faces(np.array([[x + 46, 127, 84, 114.] for x in at]).reshape(-1, 4), marks, np.full(len(at), .99))
    crops.detect_faces = detect
    demo.main(["--run", {folder!r}, "--port", "{port}", "--no-browser"])"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    old, os.environ["SYMBIOSIS_CACHE"] = os.environ.get("SYMBIOSIS_CACHE"), str(root/"cache")
    faces = open_faces(profile="smoke")
    r = run("avg_pool", faces, "smoke", out=root/"runs")
    for name, at, width in (("one.png", (40,), 260), ("two.png", (20, 280), 520)):
        photo = Image.new("RGB", (width, 340), "grey")
        for x, path in zip(at, faces.paths): photo.paste(Image.open(path), (x, 60))
        photo.save(root/name)
    Image.new("RGB", (300, 300), "green").save(root/"meadow.png"); (root/"notes.jpg").write_text("shopping list"); shutil.copy(faces.paths[0], root/"cut.jpg")
    yield root, r.folder
    if old is not None: os.environ["SYMBIOSIS_CACHE"] = old


def test_an_average_has_no_place_where_it_looks(trained):
    _, folder = trained
    ask = Predictor.load(folder); ask.model = None
    said, sheet = demo.details(ask, demo.answer_of(ask, Image.new("RGB", (178, 218)), aligned=True))
    assert len(said) == 40 and [caption for _, caption in sheet] == ["what the model saw"]


def test_without_gradio_it_says_what_to_install(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'symbiosis_nb\[demo\]'"): demo.page_of(Predictor.load(trained[1]))


@pytest.fixture(scope="module")
def address(trained):
    pytest.importorskip("gradio")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    code = textwrap.dedent(SERVER.format(folder=str(trained[1]), port=port))
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(240):
        try: urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=2); break
        except OSError: time.sleep(.5)
        assert server.poll() is None, server.stderr.read().decode()[-2000:]
    yield f"http://127.0.0.1:{port}"
    server.terminate(); server.wait(20)


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport=dict(width=1300, height=900)); page.asked, page.faults = [], []
    page.on("request", lambda r: page.asked.append(r.url)); page.on("pageerror", lambda e: page.faults.append(str(e)))
    page.goto(address); page.wait_for_selector("#photograph input[type=file]", state="attached", timeout=60_000)
    yield page
    page.close()


def upload(page, file):
    "Drop another file; the one before is taken away first"
    if page.locator("#photograph [aria-label=Clear]").count(): page.locator("#photograph [aria-label=Clear]").click()
    page.wait_for_selector("#photograph input[type=file]", state="attached")
    page.set_input_files("#photograph input[type=file]", str(file))


def says(page, place, text): page.wait_for_function("([place, text]) => document.querySelector(place)?.innerText.includes(text)", arg=[place, text], timeout=60_000)


@pytest.mark.slow
def test_in_a_browser(page, trained, address, tmp_path):
    root, folder = trained
    assert "trained on drawn faces, not for photographs" in page.inner_text("body")
    upload(page, root/"one.png"); says(page, "#message", "1 face found")
    ask = Predictor.load(folder)
    first = demo.probabilities(ask, demo.views_of(ask, root/"cut.jpg", aligned=True)[0]).index[0]
    says(page, "#attributes", first)
    page.wait_for_function("document.querySelectorAll('#where img').length >= 7")
    assert page.locator("#boxes img").count() and not page.locator("#face").is_visible()
    upload(page, root/"two.png"); says(page, "#message", "2 faces found"); page.wait_for_selector("#face", state="visible")
    before = page.inner_text("#attributes")
    page.get_by_label("face 2").click()
    page.wait_for_function("before => document.querySelector('#attributes').innerText != before", arg=before)
    upload(page, root/"meadow.png"); says(page, "#message", "no face found")
    page.wait_for_function("document.querySelectorAll('#where img').length == 0")
    upload(page, root/"notes.jpg"); says(page, "#message", "notes.jpg: is not a picture in any known format")
    assert "/tmp" not in page.inner_text("#message")
    upload(page, root/"cut.jpg"); page.locator("#cut input").check(); says(page, "#message", "taken as it is")
    page.screenshot(path=str(tmp_path/"page.png"), full_page=True)
    assert not page.faults and all(u.startswith((address, "data:", "blob:")) for u in page.asked), [u for u in page.asked if not u.startswith((address, "data:", "blob:"))]
