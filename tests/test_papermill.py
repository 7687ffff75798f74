"The reproduction notebooks, executed as a user would: whole, misspelt, without an output path, from another folder."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT/"nbs"/"reproduce_celeba.ipynb"


def papermill(*args, cwd, cache):
    env = {**os.environ, "SYMBIOSIS_CACHE": str(cache), "SYMBIOSIS_QUIET": "1"}
    return subprocess.run([sys.executable, "-m", "papermill", *map(str, args), "-k", "python3", "--no-progress-bar"], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory): return tmp_path_factory.mktemp("cache")


def test_smoke_from_another_folder(tmp_path, cache):
    done = papermill(NOTEBOOK, tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", "methods", "avg_pool ssp", "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path/"results"/"celeba.html").read_text()
    assert "synthetic" in page and "Avg. pooling" in page and "src=\"http" not in page
    cells = json.loads((tmp_path/"out.ipynb").read_text())["cells"]
    first = next("".join(o["text"]) for c in cells for o in c.get("outputs", []) if o["output_type"] == "stream")
    assert "synthetic" in first.splitlines()[0], "the first line must say that the faces are synthetic"
    assert len(list((tmp_path/"results"/"runs").glob("*/done.json"))) == 3  # two methods and the parser
    assert (tmp_path/"results"/"celeba"/"localisation.csv").is_file() and "Where the models look" in page


def test_original_images(tmp_path, cache):
    "Printed numbers are those of the original images, and cue masks, which are in the aligned frame, are not asked"
    done = papermill(NOTEBOOK, tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", "methods", "avg_pool", "-p", "variant", "original", "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path/"results"/"celeba.html").read_text()
    assert "Table 1, original" in page and "Table 1, aligned" not in page
    assert not (tmp_path/"results"/"celeba"/"localisation.csv").exists() and "Where the models look" not in page


def test_unknown_parameter_is_refused(tmp_path, cache):
    done = papermill(NOTEBOOK, tmp_path/"out.ipynb", "-p", "profil", "smoke", cwd=tmp_path, cache=cache)
    assert done.returncode != 0 and "unknown parameter profil" in done.stderr


def test_without_output_path(tmp_path, cache):
    done = papermill(NOTEBOOK, "-p", "profile", "smoke", "-p", "methods", "avg_pool", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (cache/"reports"/"celeba.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(p.stem for p in sorted((ROOT/"nbs").glob("reproduce_*.ipynb"))), "controls"])
def test_every_reproduction_in_smoke(name, tmp_path, cache):
    done = papermill(ROOT/"nbs"/f"{name}.ipynb", tmp_path/"out.ipynb", "-p", "profile", "smoke", "-p", "out", tmp_path/"results", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any((tmp_path/"results"/"runs").glob("*/done.json"))
