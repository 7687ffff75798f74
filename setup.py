"Packaging shim: everything comes from settings.ini (nbdev 2 keeps its configuration there)."
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
if not parser.read(here/"settings.ini", encoding="utf-8"): raise SystemExit("settings.ini is missing")
cfg = parser["DEFAULT"]
words = lambda key: shlex.split(cfg.get(key, ""))
extras = ("dev", "notebook", "lfwa", "detect", "pretrained", "onnx", "cluster", "distributed", "docs", "lab", "demo")

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], author_email=cfg["author_email"], keywords=cfg["keywords"].split(),
    license="Apache-2.0", python_requires=f">={cfg['min_python']}", url=cfg["git_url"],
    long_description=(here/"README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["tables/*.csv", "tables/page.*"]},
    install_requires=words("requirements"), extras_require={name: words(f"{name}_requirements") for name in extras},
    entry_points={"console_scripts": words("console_scripts"), "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
