"The wheel alone: builds, holds the published tables, imports far away from the checkout."
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_wheel_holds_the_library(built):
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    assert sum(n.startswith("symbiosis_nb/tables/") and n.endswith(".csv") for n in names) == 7
    assert {"symbiosis_nb/data/official.py", "symbiosis_nb/models/pooling.py", "symbiosis_nb/runs.py"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "nbs/", "reports/"))]


def test_sdist_can_be_built_from(built):
    names = tarfile.open(next(built.glob("*.tar.gz"))).getnames()
    assert any(n.endswith("/settings.ini") for n in names) and any(n.endswith("/tables/symbiosis.csv") for n in names)


def test_wheel_alone_finds_its_tables(built, tmp_path):
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(tmp_path/"site")
    code = "import symbiosis_nb, symbiosis_nb.published as p; print(symbiosis_nb.__file__); print(len(p.published())); import symbiosis_nb.runs"
    env = {**os.environ, "PYTHONPATH": str(tmp_path/"site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    where, rows = done.stdout.split()[:2]
    assert where.startswith(str(tmp_path)) and rows == "1814"
