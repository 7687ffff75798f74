"""Keep an executed reproduction in reports/: the notebook without paths of this machine, its page and tables, its runs without weights.

    python scripts/keep.py EXECUTED.ipynb NAME [FOLDER]   # reports/NAME.ipynb; of FOLDER, what the notebook wrote: NAME.html, NAME/*.csv, NAME/predictions

FOLDER is the notebook's `out`; its tables lie in a folder, and its page beside it, both called as the notebook's report is (`FOLDER/lfwa`, `FOLDER/lfwa.html`).
A run that a kept report has already is not kept twice (what its network has shown since is added), one that was adopted from a report keeps its name there. Look at every figure before you commit: no picture of a real data set may be in it."""
import base64
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
from PIL import Image

from symbiosis_nb.kept import Run, keep_readings, keep_small

ROOT = Path(__file__).parents[1]
LINK = re.compile(r'<a href="[^"]*">Open the report: ([^<]*)\.html</a>')


def small(png: str) -> str:
    "A large figure in 128 colours, where that is smaller"
    raw, found = base64.b64decode(png), io.BytesIO()
    if len(raw) < 150_000: return png
    Image.open(io.BytesIO(raw)).convert("RGB").quantize(128).save(found, "PNG", optimize=True)
    return base64.b64encode(min(raw, found.getvalue(), key=len)).decode()


def relative(text: str) -> str: return text.replace(f"{ROOT}/", "")


def shown(output: dict, name: str) -> dict:
    "One output as it is kept: figures small, paths relative, the link to the page beside the notebook"
    for kind, value in output.get("data", {}).items():
        text = "".join(value) if isinstance(value, list) else value
        if kind == "image/png": output["data"][kind] = small(text)
        elif isinstance(text, str): output["data"][kind] = LINK.sub(f'<a href="{name}.html">Open the report: {name}.html</a>', relative(text)).splitlines(True)
    return output


def outputs(cell: dict, name: str) -> list:
    "Its outputs without stderr; what was printed piece by piece is one text"
    found = []
    for o in cell["outputs"]:
        if o["output_type"] != "stream": found.append(shown(o, name)); continue
        if o["name"] == "stderr": continue
        text = relative("".join(o["text"]))
        if found and found[-1]["output_type"] == "stream": found[-1]["text"] += text.splitlines(True)
        else: found.append(o | dict(text=text.splitlines(True)))
    return found


def keep_notebook(executed: Path, name: str):
    "reports/NAME.ipynb"
    nb = json.loads(executed.read_text(encoding="utf-8"))
    nb["metadata"] = {k: v for k, v in nb["metadata"].items() if k == "kernelspec"}
    for c in nb["cells"]:
        c["metadata"] = {k: v for k, v in c["metadata"].items() if k == "tags"}
        if "injected-parameters" in c["metadata"].get("tags", []):
            c["source"] = [relative(line) for line in "".join(c["source"]).splitlines(True) if not line.startswith("out =")]
        if c["cell_type"] == "code": c["outputs"] = outputs(c, name)
    (ROOT/"reports"/f"{name}.ipynb").write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def behind(runs: Path, out: Path) -> dict:
    "The runs in a runs.csv, by the name that reports have for them: an adopted one keeps its own. An average names both of its runs"
    folders = {f for row in pd.read_csv(runs).folder for f in row.split(" + ")}
    found = [Run(out/"runs"/f) for f in sorted(folders)]
    return {r.done.get("adopted", {}).get("folder", r.folder.name): r for r in found}


def keep_folder(out: Path, report: str, name: str):
    "Page, tables, and the runs behind them; of drawn pictures the tables alone, since anybody makes those runs in minutes"
    source, there = out/report, ROOT/"reports"/name
    there.mkdir(parents=True, exist_ok=True)
    if (page := out/f"{report}.html").is_file(): shutil.copy(page, there.with_suffix(".html"))
    have = {p.name: p for p in (ROOT/"reports").glob("*/predictions/*")}
    for table in source.rglob("*.csv"):
        (copy := there/table.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(table, copy)
        if table.name != "runs.csv": continue
        for called, r in behind(table, out).items():
            copy.write_text(copy.read_text(encoding="utf-8").replace(r.folder.name, called), encoding="utf-8")
            if "synthetic" in r.config["data"]: continue
            if called in have: keep_readings(r, have[called])
            else: keep_small(r, there/"predictions")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4): sys.exit(__doc__)
    executed, name, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) == 4 else None
    keep_notebook(executed, name)
    found = sorted({p.parent.name for p in out.glob("*/*.csv")}) if out else []
    if len(found) > 1: sys.exit(f"{out} holds several reports ({', '.join(found)}): move the others away")
    if found: keep_folder(out, found[0], name)
