"The pages on one's own data and method: what they show is run, in processes that know nothing else."
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from symbiosis_nb.runs import Run

ROOT = Path(__file__).parents[1]


def blocks(page): return re.findall(r"```python\n(.*?)```", (ROOT/"docs"/f"{page}.md").read_text(encoding="utf-8"), re.S)


def process(code, folder):
    env = {**os.environ, "SYMBIOSIS_CACHE": str(folder/"cache"), "SYMBIOSIS_QUIET": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_method_of_ones_own(tmp_path):
    module, script, _ = blocks("own_method")   # the third is for who has LFWA
    (tmp_path/"my_method.py").write_text(module)
    assert "Mine" in process(script, tmp_path)
    r = next(r for r in map(Run, (tmp_path/"runs").glob("mine-*")))
    assert r.config["module"] == "my_method" and r.config["paper"] == ""
    ask = f"from symbiosis_nb.all import *; print(Predictor.load({str(r.folder)!r})(open_faces(profile='smoke').paths[0], aligned=True).shape)"
    assert process(ask, tmp_path).strip() == "(40, 1)"


def test_data_of_ones_own(tmp_path):
    csv, folders = blocks("own_data")
    for k in range(12):
        for place in (f"my/{k}.png", f"classes/{'ab'[k % 2]}/{k}.png"):
            (tmp_path/place).parent.mkdir(parents=True, exist_ok=True); Image.new("RGB", (8, 8), (20*k, 0, 0)).save(tmp_path/place)
    pd.DataFrame(dict(file=[f"{k}.png" for k in range(12)], hat=[k % 2 for k in range(12)])).to_csv(tmp_path/"my.csv", index=False)
    assert "1 attribute: hat" in process(csv, tmp_path)
    first = folders.splitlines()[0]
    assert process(f"from symbiosis_nb.all import *\n{first}\nprint(table.names)", tmp_path).strip() == "('a', 'b')"


@pytest.mark.parametrize("page", ["own_data", "own_method"])
def test_pages_name_what_there_is(page):
    "Every method, and every name that is called, exists; links lead somewhere"
    from symbiosis_nb import all as everything
    from symbiosis_nb.methods import METHODS
    text = (ROOT/"docs"/f"{page}.md").read_text(encoding="utf-8")
    rows = [l.split("|")[1] for l in text.splitlines() if l.startswith("| `")]
    assert all(m in METHODS for row in rows for m in re.findall(r"`(\w+)`", row))
    called = set(re.findall(r"\b(table_from_\w+|parsing_from_\w+|run|aligned|open_faces|register|Method|Recipe|Card|helen|lapa|celebamask_hq)\(", text))
    assert called and not [n for n in called if not hasattr(everything, n)]
    assert all((ROOT/"docs"/link).resolve().exists() for link in re.findall(r"\]\((\.\.[^)]+)\)", text))
