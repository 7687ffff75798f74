"""The library under the lowest releases that settings.ini promises, and under other Pythons.

    python scripts/versions.py --lowest                   # a fresh environment, every direct requirement at its lower bound
    python scripts/versions.py --python python3.13        # the newest releases under another Python
    python scripts/versions.py --check                    # no environment: the check alone, with what is installed

The check imports every module, reads the printed tables, trains two methods on drawn faces, makes the card and its page, and asks a predictor.
An environment takes some gigabytes (torch) and minutes; it is deleted afterwards unless --keep is given."""
import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("", "lfwa_", "onnx_")   # of settings.ini: what the check needs


def promised(extras=EXTRAS) -> list:
    "The requirements of settings.ini, as written"
    parser = ConfigParser(delimiters=["="]); parser.read(ROOT/"settings.ini", encoding="utf-8")
    return [r for extra in extras for r in shlex.split(parser["DEFAULT"][f"{extra}requirements"])]


def lowest(
    requirement: str,  # for example "torch>=2.9,<3"
) -> str:              # "torch==2.9"
    "A requirement at its lower bound; raises `ValueError` when it has none"
    found = re.fullmatch(r"([\w.-]+)(?:==|>=)([\w.]+)(?:,.*)?", requirement)
    if not found: raise ValueError(f"settings.ini: {requirement} has no lower bound")
    return f"{found[1]}=={found[2]}"


def check(folder: Path):
    "Everything a first hour touches, in this process's environment; raises where something fails"
    import pkgutil
    from importlib import import_module
    import torch
    import symbiosis_nb
    from symbiosis_nb.core import fingerprint
    for module in pkgutil.walk_packages(symbiosis_nb.__path__, "symbiosis_nb."): import_module(module.name)
    from symbiosis_nb.all import Card, Predictor, open_faces, open_parsing, published, run, write_html
    torch.set_num_threads(1)
    faces, parsing = open_faces(profile="smoke"), open_parsing(profile="smoke")
    runs = [run(m, faces, "smoke", out=folder/"runs", parsing=parsing) for m in ("avg_pool", "ssp")]
    card = Card(runs, faces)
    page = write_html(card, folder/"card.html", "Versions")
    ask = Predictor.load(runs[1].folder)
    back = Predictor.load(ask.to_onnx(folder/"ssp.onnx"))
    answer, same = ask(faces.paths[:3], aligned=True), back(faces.paths[:3], aligned=True)
    assert answer.shape == (40, 3) and (answer - same).abs().max().max() < 1e-4
    assert len(card.scores()) and Path(page or folder/"card.html").stat().st_size > 10_000
    print(f"checked: {len(published())} printed numbers, {len(runs)} runs;", fingerprint())


def environment(folder: Path, python: str, pins: list):
    "A virtual environment with this library in it, the checkout itself; returns its python"
    def pip(*args): subprocess.run([str(inside), "-m", "pip", "install", "-q", "--no-compile", *args], check=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    inside = folder/("Scripts/python.exe" if os.name == "nt" else "bin/python")
    torch = [p for p in pins if p.startswith("torch")]
    pip(*(torch or ["torch", "torchvision"]))   # first: pip would look at many releases otherwise
    pip(*(pins or promised()))
    return inside


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowest", action="store_true"); parser.add_argument("--check", action="store_true")
    parser.add_argument("--python", default=sys.executable); parser.add_argument("--keep", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to put it all; default: a new temporary folder")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    if given.check: return check(folder)
    try:
        inside = environment(folder/"venv", given.python, [lowest(r) for r in promised()] if given.lowest else [])
        env = {**os.environ, "PYTHONPATH": str(ROOT), "SYMBIOSIS_CACHE": str(folder/"cache"), "SYMBIOSIS_QUIET": "1", "OMP_NUM_THREADS": "1"}
        subprocess.run([str(inside), __file__, "--check", "--folder", str(folder)], check=True, env=env)
        subprocess.run([str(inside), "-m", "pip", "list", "--format=freeze"], check=True)
    finally:
        if not given.keep: shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__": main()
