"""README.md from the index notebook: `python scripts/readme.py FOLDER`. The notebook's links are those of `nbs/`, where people click them; README lies one folder higher."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def from_root(text: str) -> str:
    "Links as seen from nbs/ as links from the root"
    text = text.replace("](../", "](")
    return re.sub(r"\]\((?!https?:|#|/)([\w.]+\.ipynb)", r"](nbs/\1", text)


def write(folder: Path):
    "README.md and its pictures into a folder"
    options = ["--TemplateExporter.exclude_raw=True", "--TagRemovePreprocessor.enabled=True", "--TagRemovePreprocessor.remove_cell_tags=remove_cell",
               "--TagRemovePreprocessor.remove_input_tags=remove_input", "--NbConvertApp.output_files_dir=nbs/images"]
    subprocess.run([sys.executable, "-m", "nbconvert", str(ROOT/"nbs"/"index.ipynb"), "--to", "markdown", "--output-dir", str(folder), "--output", "README", *options],
                   check=True, capture_output=True)
    readme = Path(folder)/"README.md"
    text = from_root(readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")
    for old in (Path(folder)/"nbs"/"images").glob("README_*"):   # of cells that have moved since
        if old.name not in text: old.unlink()


if __name__ == "__main__": write(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
