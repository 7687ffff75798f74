"A browser for the tests that look at pages; they are skipped where there is none"
import os
import shutil

import pytest


@pytest.fixture(scope="session")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None: pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync.sync_playwright() as p:
        found = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()
