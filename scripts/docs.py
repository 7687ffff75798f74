"""The documentation site: `python scripts/docs.py [FOLDER]`. Notebooks become Markdown by nbconvert, the API pages are read off the docments, MkDocs (material) makes the site."""
import dataclasses
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from fastcore.docments import docments
from nbconvert import MarkdownExporter

sys.path.insert(0, str(Path(__file__).parent))
from readme import ROOT, write as write_readme

HOW_TO = dict(own_data="Your own data", own_method="Your own method", cluster="On a cluster", gpu="On a GPU", reports="Reading a report")
SIGHTS = ("benchmark", "claims", "findings", "controls", "own_data", "strength", "cross")   # notebooks that are neither library nor reproduction


def cleaned(path: Path):
    "A notebook without its hidden cells and nbdev's directives"
    import nbformat
    nb = nbformat.read(path, 4)
    nb.metadata.language_info = dict(name="python")
    hidden = lambda c: c.cell_type == "raw" or re.search(r"(?m)^#\| *(hide|default_exp)\s*", c.source)
    nb.cells = [c for c in nb.cells if not hidden(c)]
    for c in nb.cells:
        if c.cell_type != "code": continue
        c.source = re.sub(r"(?m)^#\|.*\n?", "", c.source)
        c.outputs = [o for o in c.outputs if not (o.output_type == "stream" and o.name == "stderr")]
    return nb


def page_of(path: Path, out: Path):
    "A notebook as a Markdown page with its pictures beside it"
    text, more = MarkdownExporter().from_notebook_node(cleaned(path), dict(output_files_dir=f"{path.stem}_files"))
    text = re.sub(r"<style scoped>.*?</style>\n?", "", text, flags=re.S)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    for name, data in more["outputs"].items():
        (out.parent/name).parent.mkdir(parents=True, exist_ok=True); (out.parent/name).write_bytes(data)


def table_of(obj) -> str:
    "The docments of a function or class as a table"
    found = docments(obj, full=True, returns=True)
    clean = lambda v: "" if v is inspect._empty or v is None else str(getattr(v, "__name__", v) if isinstance(v, type) else v).replace("|", "\\|").replace("\n", " ")
    rows = [(n, clean(d.anno), "" if d.default is inspect._empty else f"`{clean(d.default) if d.default is not None else None}`", clean(d.docment)) for n, d in found.items() if n != "self"]
    rows = [("**returns**" if n == "return" else f"`{n}`", f"`{a}`" if a else "", v if n != "return" else "", c) for n, a, v, c in rows if n != "return" or a or c]
    if not rows: return ""
    return "\n".join(["| | type | default | |", "| --- | --- | --- | --- |", *(f"| {' | '.join(r)} |" for r in rows)]) + "\n"


def entry(name: str, obj, level: str = "###") -> str:
    "One name of the API: signature, what it does, its parameters; a class with its public methods"
    try: signature = str(inspect.signature(obj))
    except (TypeError, ValueError): signature = ""
    signature = re.sub(r" at 0x[0-9a-f]+", "", signature)
    own = vars(obj).get("__doc__") if inspect.isclass(obj) else inspect.getdoc(obj)
    doc = "" if own is None or (dataclasses.is_dataclass(obj) and own.startswith(f"{name}(")) else inspect.cleandoc(own)
    text = f"{level} {name}\n\n```python\n{name}{signature}\n```\n\n{doc}\n\n{table_of(obj)}\n"
    if not inspect.isclass(obj): return text
    methods = [(n, f) for n, f in vars(obj).items() if inspect.isfunction(f) and not n.startswith("_") and f.__doc__ and f.__module__.startswith("symbiosis_nb")]
    return text + "".join(entry(f"{name}.{n}", f, level + "#") for n, f in methods)


def api_page(notebook: Path, module: str, out: Path) -> bool:
    "The API of the module that a notebook exports; whether there is any"
    m = importlib.import_module(f"symbiosis_nb.{module}")
    names = [n for n in getattr(m, "__all__", []) if getattr(getattr(m, n), "__module__", m.__name__) == m.__name__]
    if not names: return False
    called = [n for n in names if callable(getattr(m, n))]
    values = [n for n in names if n not in called]
    text = f"# {module}\n\n{inspect.getdoc(m) or ''}\n\nWith its reasons and examples: [the notebook](../nbs/{notebook.name}).\n\n"
    if values: text += "Values: " + ", ".join(f"`{n}`" for n in values) + ".\n\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "".join(entry(n, getattr(m, n)) for n in called), encoding="utf-8")
    return True


def claims_page(out: Path):
    "Every claim of the papers: where it is tested, what kept reports say"
    from symbiosis_nb.claims import coverage, kept_ledger, tested_in
    found = coverage(kept_ledger(ROOT/"reports"), tested_in(ROOT/"nbs")).astype(str)
    line = lambda cells: f"| {' | '.join(str(c).replace('|', chr(92) + '|') for c in cells)} |"
    rows = [line(["id", *(c.replace("_", " ") for c in found)]), line(["---"]*(found.shape[1] + 1)), *(line([i, *row]) for i, row in zip(found.index, found.values))]
    out.write_text(f"# The papers' claims\n\n{len(found)} claims by id; how each is judged: [claims](../nbs/52_claims.ipynb), [stats](../nbs/22_stats.ipynb).\n\n" + "\n".join(rows) + "\n", encoding="utf-8")


def module_of(path: Path) -> str:
    "What a notebook exports to; empty for those that export nothing"
    found = re.search(r"#\| default_exp ([\w.]+)", path.read_text(encoding="utf-8"))
    return found[1] if found else ""


def links(text: str, page: Path, source: Path) -> str:
    "Links to notebooks as links to their pages; what is no part of the site is linked where the code lies"
    url = re.search(r"(?m)^git_url = (.*)", (ROOT/"settings.ini").read_text())[1]
    ini = dict(re.findall(r"(?m)^(\w+) = (.*)", (ROOT/"settings.ini").read_text()))
    for k in ("user", "repo"): url = url.replace(f"%({k})s", ini[k])
    module = module_of(ROOT/"nbs"/f"{page.stem}.ipynb") if page.parent.name == "nbs" else ""
    own = next((p for p in [source/"api"/f"{module}.md"] if module and p.is_file()), None)
    def to(m):
        link, _, anchor = m[1].partition("#")
        if not link and own and re.search(rf"(?mi)^### {re.escape(anchor)}$", own.read_text(encoding="utf-8")): link, anchor = f"../api/{own.name}", anchor.lower()   # a symbol of the notebook
        if re.match(r"[a-z]+:", link) or not link: return m[0]
        here = (page.parent/link).resolve()
        if here.suffix == ".ipynb": here = here.with_suffix(".md")
        if here.is_file(): return f"]({Path(*['..']*len(page.parent.relative_to(source).parts), here.relative_to(source)).as_posix()}{'#' + anchor if anchor else ''})"
        return f"]({url}/blob/main/{(page.parent/link).resolve().relative_to(source).as_posix()})"
    return re.sub(r"\]\(([^)\s]+)\)", to, text)


def build(site: Path):
    "All pages, then the site"
    source = ROOT/"_proc"/"site"
    shutil.rmtree(source.parent, ignore_errors=True); source.mkdir(parents=True)
    write_readme(source); (source/"README.md").rename(source/"index.md")
    front = (source/"index.md").read_text(encoding="utf-8")
    (source/"index.md").write_text(re.sub(r"(?m)^\[!\[.*\n", "", front), encoding="utf-8")   # badges are pictures from elsewhere
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "data/README.md", "reports/README.md"):
        (source/name).parent.mkdir(exist_ok=True, parents=True); shutil.copy(ROOT/name, source/name)
    (source/"how_to").mkdir(); shutil.copy(ROOT/"docs"/"extra.css", source/"extra.css")
    for name in HOW_TO: shutil.copy(ROOT/"docs"/f"{name}.md", source/"how_to"/f"{name}.md")
    notebooks = [p for p in sorted((ROOT/"nbs").glob("*.ipynb")) if p.stem != "index"]
    for p in notebooks: page_of(p, source/"nbs"/p.name)
    kept = sorted((ROOT/"reports").glob("*.ipynb"))
    for p in kept: page_of(p, source/"reports"/p.name)
    cards = source/"reports"/"cards"; cards.mkdir()   # a card is called as its notebook's page is: it lies elsewhere, and is linked there
    for p in (ROOT/"reports").glob("*.html"):
        shutil.copy(p, cards); page = source/"reports"/f"{p.stem}.md"
        if page.is_file(): page.write_text(page.read_text(encoding="utf-8").replace(f'href="{p.name}"', f'href="cards/{p.name}"'), encoding="utf-8")
    for p in (ROOT/"reports").glob("*.csv"): shutil.copy(p, source/"reports")
    library = [p for p in notebooks if module_of(p)]
    api = [m for p in library if api_page(p, m := module_of(p), source/"api"/f"{m}.md")]
    claims_page(source/"how_to"/"claims.md")
    for page in source.rglob("*.md"): page.write_text(links(page.read_text(encoding="utf-8"), page, source), encoding="utf-8")
    papers = [p for p in notebooks if p.stem.startswith("reproduce_")]
    nav = [{"Home": "index.md"}, {"How to": [{t: f"how_to/{n}.md"} for n, t in HOW_TO.items()]},
           {"Reproductions": [*({p.stem.removeprefix("reproduce_"): f"nbs/{p.stem}.md"} for p in papers), *({p.stem: f"nbs/{p.stem}.md"} for p in notebooks if p.stem in SIGHTS)]},
           {"Kept reports": ["reports/README.md", *({p.stem: f"reports/{p.stem}.md"} for p in kept)]}, {"Claims": "how_to/claims.md"},
           {"Library": [{module_of(p): f"nbs/{p.stem}.md"} for p in library]}, {"API": [{m: f"api/{m}.md"} for m in api]},
           {"About": [{"Changes": "CHANGELOG.md"}, {"Contributing": "CONTRIBUTING.md"}, {"Data sets": "data/README.md"}]}]
    config = yaml.safe_load((ROOT/"docs"/"mkdocs.yml").read_text()) | dict(docs_dir=str(source), site_dir=str(site.absolute()), nav=nav)
    (source.parent/"mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "-q", "-f", str(source.parent/"mkdocs.yml")], check=True, env=os.environ | dict(NO_MKDOCS_2_WARNING="1"))
    print(f"the site: {site.absolute()/'index.html'}")


if __name__ == "__main__": build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT/"_docs"))
