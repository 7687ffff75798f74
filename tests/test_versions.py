"""The library under the lowest releases that settings.ini promises, and under the oldest and newest Python; see scripts/versions.py."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/"scripts"))
from versions import lowest, promised  # noqa: E402

PYENV = Path.home()/".pyenv/versions"

def interpreter(version):
    "A python of this version on this machine, or None"
    found = [*PYENV.glob(f"{version}.*/bin/python"), *filter(None, [shutil.which(f"python{version}")])]
    works = lambda p: subprocess.run([str(p), "-c", "import ssl, venv"], capture_output=True).returncode == 0
    return next((str(p) for p in found if works(p)), None)

def checked(*args):
    done = subprocess.run([sys.executable, str(ROOT/"scripts/versions.py"), *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_requirement_has_a_lower_bound():
    pins = [lowest(r) for r in promised()]
    assert {"torch==2.9", "pandas==2.2", "onnxscript==0.7"} <= set(pins) and len(pins) == len({p.split("==")[0] for p in pins})
    with pytest.raises(ValueError, match="no lower bound"): lowest("torch<3")


def test_what_is_imported_is_required():
    "Every package that a module imports at its top stands in settings.ini, numpy with pandas"
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "numpy": "pandas", "fcntl": "", "symbiosis_nb": ""}
    required = {re.split("[<>=]", r)[0] for r in promised(("",))}
    lines = [line for f in (ROOT/"symbiosis_nb").rglob("*.py") for line in f.read_text(encoding="utf-8").splitlines()]
    packages = {m[1] for line in lines if (m := re.match(r"(?:import|from) ([A-Za-z_]\w*)", line))} - set(sys.stdlib_module_names)
    assert {names.get(p, p) for p in packages} - {""} <= required


@pytest.mark.slow
def test_lowest_releases(): assert "checked: 1814 printed numbers" in checked("--lowest")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_other_pythons(version):
    python = interpreter(version)
    if python is None: pytest.skip(f"no Python {version} here")
    assert f"'python': '{version}." in checked("--python", python)
