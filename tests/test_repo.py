"The library and its notebooks agree; notebooks are clean and parameterised; nothing is in git that must not be."
import ast
import builtins
import csv
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


LIBRARY = [p for p in NOTEBOOKS if re.match(r"\d\d", p.name)]
PAPERMILLED = [p for p in NOTEBOOKS if p.name.startswith("reproduce") or p.stem in ("benchmark", "claims", "findings", "controls", "own_data", "strength", "cross")]


def code_of(path, exported=False):
    "Sources of a notebook's code cells, without directives and magics"
    sources = ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
    return ["\n".join(l for l in s.splitlines() if not l.startswith(("%", "!"))) for s in sources if not exported or re.search(r"(?m)^#\| *export", s)]


def module_of(path):
    return next((m[1] for s in code_of(path) if (m := re.match(r"#\| *default_exp (\S+)", s))), None)


def imported(path):
    "Modules of this package that a notebook's code imports"
    for source in code_of(path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import): yield from (a.name.removeprefix("symbiosis_nb.") for a in node.names if a.name.startswith("symbiosis_nb."))
            elif isinstance(node, ast.ImportFrom) and (node.module or "") == "symbiosis_nb": yield from (a.name for a in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("symbiosis_nb."):
                module = node.module.removeprefix("symbiosis_nb.")
                yield from (f"{module}.{a.name}" if module in ("data", "models", "needs") else module for a in node.names)


def test_imports_run_downwards():
    "A notebook imports only from lower numbers; hence there is no circle"
    number = {module_of(p): p.name.split("_")[0] for p in LIBRARY}
    up = [f"{p.name} imports {m}" for p in LIBRARY for m in set(imported(p)) if m in number and m != module_of(p) and number[m] >= p.name.split("_")[0]]
    assert not up, up
    assert all(m in number for p in LIBRARY for m in imported(p) if m != "__version__"), "an import of a module that no notebook makes"


STRING = re.compile(r"""f?"(?:[^"\\]|\\.)*"|f?'(?:[^'\\]|\\.)*'""")
VALUES = re.compile(r"[\s\w.,()\[\]{}:=-]*")   # a row of a table: strings, numbers, names and brackets alone


def long_lines(source):
    "Lines over 160 characters, but messages (without their longest string they are short enough) and rows of tables"
    for line in source.splitlines():
        message = max(map(len, STRING.findall(line)), default=0)
        if len(line) - message > 160 and not VALUES.fullmatch(STRING.sub("", line)): yield line


def test_long_lines_are_told_apart():
    code, message, row = "a = f(b) + " + "g(c)*2 + "*20 + "d", "    raise E(" + repr("x"*200) + ")", "    (" + ", ".join(['"a", 1.5']*30) + "),"
    assert list(long_lines("\n".join((code, message, row)))) == [code]


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_lines_can_be_read(path):
    found = [l for s in code_of(path, exported=True) for l in long_lines(s)]
    assert not found, found


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p in PAPERMILLED and p.stem != "benchmark" or p.stem == "index"], ids=name)
def test_code_that_people_read_fits_the_page(path):
    "JupyterLab wraps prose, and no code: at most 120 characters a line, strings and parameters too"
    lines = [l for c in cells(path) if c["cell_type"] == "code" for l in "".join(c["source"]).splitlines()]
    assert [l for l in lines if len(l) > 120] == []


def names_in(sources) -> tuple:
    "Names that code imports, makes in any other way, and uses"
    nodes = [n for source in sources for n in ast.walk(ast.parse(source))]
    brought = {(a.asname or a.name).split(".")[0] for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
    stored = lambda n: isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    made = {n.id for n in nodes if stored(n)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    made |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)) and n.name}
    return brought, made, {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


@pytest.mark.parametrize("path", [p for p in PAPERMILLED if p.stem not in ("claims", "findings")], ids=name)
def test_what_trains_for_minutes_is_not_run_as_an_example(path):
    "`make test` runs every notebook that does not say `skip_exec`; these have slow tests of their own"
    assert [c for c in cells(path) if c["cell_type"] == "raw" and "skip_exec: true" in "".join(c["source"])]


@pytest.mark.parametrize("path", PAPERMILLED, ids=name)
def test_papermilled_notebooks_use_what_they_have(path):
    "A name that nothing imports or assigns would stop a notebook in its middle; an import that nothing uses misleads"
    brought, made, used = names_in(code_of(path))
    assert used - brought - made - {*dir(builtins), "get_ipython", "display"} == set()   # by Python, and by Jupyter
    assert brought - used == set()


@pytest.mark.parametrize("path", sorted((ROOT/"symbiosis_nb").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_name_of_the_library_is_there(path):
    "A function that no example calls would stop with a `NameError` in somebody's hands"
    brought, made, used = names_in([path.read_text(encoding="utf-8")])
    assert used - brought - made - {*dir(builtins), "__file__"} == set()


@pytest.mark.parametrize("path", PAPERMILLED, ids=name)
def test_papermilled_notebooks_define_nothing(path):
    "Parameters, calls, tables, figures: what has a name of its own stands in the library, with an example"
    for source in code_of(path):
        assert not re.search(r"(?m)^#\| *export", source)
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef)), f"{path.name} defines {node.name}"
            assert not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)), f"{path.name} defines {ast.unparse(node.targets[0])}"


@pytest.mark.parametrize("path", [p for p in PAPERMILLED if p.stem not in ("claims", "findings")], ids=name)
def test_reproduction_notebook(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    assert "parameters" in code[0]["metadata"].get("tags", []), "the first code cell must be tagged 'parameters', or papermill ignores every parameter"
    assert "refuse_unknown" in "".join(code[1]["source"])
    calls = [n for n in ast.walk(ast.parse("".join(code[1]["source"]))) if isinstance(n, ast.Call) and ast.unparse(n.func) == "refuse_unknown"]
    known = set(ast.literal_eval(calls[0].args[1]).split())
    assigned = set(re.findall(r"(?m)^(\w+): ", "".join(code[0]["source"])))
    assert known == assigned, "the parameters cell and refuse_unknown must name the same parameters"
    texts = "|".join(re.findall(r"(?m)^(\w+): str", "".join(code[0]["source"])))
    bare = re.findall(rf"\b(?:int|float), (?:{texts})\.split", "".join("".join(c["source"]) for c in code))
    assert not bare, f"-p {bare} with one number arrives as a number: str(...) first"
    stored = lambda c: {n.id for n in ast.walk(ast.parse("".join(c["source"]))) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    assert not (again := known & set().union(*map(stored, code[1:]))), f"a parameter means what was asked for to the end; {again} is assigned again"
    assert not any(c["outputs"] for c in code), "sources are kept without outputs; executed notebooks live in reports/"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.name.startswith("reproduce") or p.stem in ("controls", "strength", "cross")], ids=lambda p: p.stem)
def test_a_kept_empty_source_names_its_executed_copies(path):
    text = "".join(next(c["source"] for c in cells(path) if c["cell_type"] == "markdown"))
    line = next(l for l in text.splitlines() if l.startswith("**Executed**: ") and "its executed copies: " in l)
    copies = {p.name for p in (ROOT/"reports").glob(f"{path.stem.removeprefix('reproduce_')}_*.ipynb")}
    assert set(re.findall(r"\]\(\.\./reports/([^)]+)\)", line)) == copies != set()


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.name.startswith("reproduce") or p.stem == "own_data"], ids=lambda p: p.stem)
def test_a_fresh_machine_installs_the_library_first(path, monkeypatch):
    "As on Colab: before anything of the library is imported; where it is there, nothing is installed"
    import importlib.util
    import types
    first = next("".join(c["source"]) for c in cells(path) if c["cell_type"] == "code" and "symbiosis_nb" in "".join(c["source"]))
    install, asked = first[:first.index("from symbiosis_nb")], []
    shell = types.SimpleNamespace(run_line_magic=lambda *a: asked.append(a))
    exec(install, dict(get_ipython=lambda: shell)); assert not asked
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(install, dict(get_ipython=lambda: shell)); assert asked == [("pip", "install -q git+https://github.com/symbiosis-nb/symbiosis_nb")]


def test_readme_is_current(tmp_path):
    subprocess.run([sys.executable, str(ROOT/"scripts"/"readme.py"), str(tmp_path)], check=True)
    assert (tmp_path/"README.md").read_text() == (ROOT/"README.md").read_text(), "run `make readme`"


def test_links_of_notebooks_and_readme_lead_somewhere():
    "As seen from where they stand: a notebook's from its folder, README's from the root"
    lost = []
    for path in (ROOT/f for f in tracked() if f.endswith((".md", ".ipynb")) and not f.startswith("reports/")):
        text = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown") if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:|#", link): continue
            if not (path.parent/link.split("#")[0]).exists(): lost.append(f"{path.relative_to(ROOT)}: {link}")
    assert not lost


@pytest.mark.parametrize("path", sorted((ROOT/"reports").glob("*.ipynb")), ids=lambda p: p.stem)
def test_links_of_kept_reports_lead_somewhere(path):
    "What an executed notebook shows as a link, too: the page beside it"
    shown = [t for c in cells(path) for o in c.get("outputs", []) for t in o.get("data", {}).get("text/html", [])]
    links = re.findall(r'href="([^"#]+)"', "".join(shown))
    assert [l for l in links if not re.match(r"[a-z]+:", l) and not (path.parent/l).exists()] == []


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


def test_every_finding_names_a_test_that_exists():
    "reports/findings.csv: what the audits found, where it was mended, which test holds it"
    with open(ROOT/"reports/findings.csv", encoding="utf-8", newline="") as f: rows = list(csv.DictReader(f))
    for row in rows:
        file, test = row["test"].split("::")
        assert f"def {test}(" in (ROOT/"tests"/file).read_text(encoding="utf-8"), row
    assert len(rows) > 40


def test_rooms_can_be_lived_in():
    "No module over 500 lines but the nine readers, which are nine rooms in one file"
    lines = {f.name: len(f.read_text(encoding="utf-8").splitlines()) for f in (ROOT/"symbiosis_nb").rglob("*.py") if f.name != "_modidx.py"}
    assert {f: n for f, n in lines.items() if n > 500 and f != "official.py"} == {}


def parameters(notebook):
    "The parameters cell of a notebook; None where it has none"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return next((c for c in cells if "parameters" in c["metadata"].get("tags", [])), None)


@pytest.mark.parametrize("notebook", filter(parameters, NOTEBOOKS), ids=lambda p: p.name)
def test_papermill_reads_every_parameter(notebook):
    "It takes lines with one equals sign; a line with two is a parameter that it does not know, and warns of"
    assert [line for line in parameters(notebook)["source"] if line.count("=") > 1] == []
