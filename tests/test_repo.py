"The library and its notebooks agree; notebooks are clean and parameterised; nothing is in git that must not be."
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
name = lambda p: p.name


def tracked():
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if out.returncode: pytest.skip("not a git checkout")
    return [f for f in out.stdout.split("\0") if f and (ROOT/f).is_file()]


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_library_is_what_the_notebooks_export(tmp_path):
    for f in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy(ROOT/f, tmp_path/f)
    shutil.copytree(ROOT/"nbs", tmp_path/"nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, check=True)
    have, want = ROOT/"symbiosis_nb", tmp_path/"symbiosis_nb"
    files = lambda folder: {p.relative_to(folder) for p in folder.rglob("*.py")} - {Path("__init__.py")}
    assert files(have) == files(want), "run `make export`; a module without a notebook must be deleted"
    differ = [str(p) for p in files(want) if (have/p).read_text() != (want/p).read_text()]
    assert not differ, f"run `make export`: {differ}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_is_clean(path):
    from execnb.nbio import nb2str, read_nb
    from nbdev.clean import clean_nb
    before = path.read_text(encoding="utf-8")
    nb = read_nb(path)
    clean_nb(nb, allowed_cell_metadata_keys=["tags"])
    assert nb2str(nb) == before, "run `make export`"
    assert json.loads(before)["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.name.startswith("reproduce")], ids=name)
def test_reproduction_notebook(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    assert "parameters" in code[0]["metadata"].get("tags", []), "the first code cell must be tagged 'parameters', or papermill ignores every parameter"
    assert "refuse_unknown" in "".join(code[1]["source"])
    known = set(re.search(r'refuse_unknown\(globals\(\), "([^"]+)"', "".join(code[1]["source"])).group(1).split())
    assigned = set(re.findall(r"(?m)^(\w+): ", "".join(code[0]["source"])))
    assert known == assigned, "the parameters cell and refuse_unknown must name the same parameters"
    stored = lambda c: {n.id for n in ast.walk(ast.parse("".join(c["source"]))) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert not (again := known & set().union(*map(stored, code[1:]))), f"a parameter means what was asked for to the end; {again} is assigned again"
    assert not any(c["outputs"] for c in code), "sources are kept without outputs; executed notebooks live in reports/"
    assert not any("#| export" in "".join(c["source"]) or re.search(r"(?m)^(def|class) ", "".join(c["source"])) for c in code)


def test_readme_is_current(tmp_path):
    subprocess.run([sys.executable, "-m", "nbconvert", str(ROOT/"nbs"/"index.ipynb"), "--to", "markdown", "--TemplateExporter.exclude_raw=True", "--output-dir", str(tmp_path),
                    "--output", "README", "--NbConvertApp.output_files_dir=nbs/images", "--TagRemovePreprocessor.enabled=True", "--TagRemovePreprocessor.remove_cell_tags=remove_cell",
                    "--TagRemovePreprocessor.remove_input_tags=remove_input"], check=True, capture_output=True)
    assert (tmp_path/"README.md").read_text() == (ROOT/"README.md").read_text(), "run `make readme`"


def test_nothing_forbidden_is_tracked():
    files = tracked()
    big = [f for f in files if (ROOT/f).stat().st_size > 3_000_000]
    assert not big, f"larger than 3 MB: {big}"
    weights = [f for f in files if f.endswith((".pt", ".pth", ".pkl", ".npy", ".safetensors", ".jpg", ".jpeg", ".bmp", ".zip"))]
    assert not weights, f"weights and data-set images never belong in git: {weights}"
    assert not [f for f in files if f.startswith("data/") and f != "data/README.md"]


def test_no_machine_paths():
    "No committed text names a path of one machine or the address of a package index"
    bad = re.compile(r"(/work/|/root/|/home/(?!user|you|me)\w+/|pypi\.org/simple|index-url)")
    found = [f for f in tracked() if f.endswith((".py", ".ipynb", ".md", ".ini", ".toml", ".txt", ".yml", ".html", ".csv", ".json", "Makefile"))
             and f != "tests/test_repo.py" and bad.search((ROOT/f).read_text(encoding="utf-8", errors="ignore"))]
    assert not found
