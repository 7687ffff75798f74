"""Where a GPU is lent for minutes: `make test-gpu`, one command, under ten minutes, one table.

SYMBIOSIS_TEST_DEVICE=cpu runs the same tests without a GPU, smaller, so that all but CUDA itself is exercised."""
import csv
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from symbiosis_nb.core import hardware

DEVICE = os.environ.get("SYMBIOSIS_TEST_DEVICE", "cuda")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT/"tests"))   # its helpers
ROWS = []


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.fspath).parent != Path(__file__).parent: continue
        item.add_marker(pytest.mark.gpu)
        if DEVICE == "cuda" and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here; SYMBIOSIS_TEST_DEVICE=cpu runs all but CUDA itself"))


@pytest.fixture
def on_gpu() -> bool: return DEVICE == "cuda"


@pytest.fixture
def note(request):
    "Write a measured value into the table"
    def write(what, value, unit): ROWS.append(dict(test=request.node.name, what=what, value=f"{value:.6g}", unit=unit, device=hardware()))
    start = time.perf_counter()
    yield write
    write("whole test", time.perf_counter() - start, "s")


def pytest_sessionfinish(session):
    if not ROWS: return
    file = ROOT/"reports"/("gpu.csv" if DEVICE == "cuda" else "local/gpu_on_cpu.csv")   # what was not measured on a GPU is not kept
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as f:
        writer = csv.DictWriter(f, list(ROWS[0])); writer.writeheader(); writer.writerows(ROWS)
    print(f"\n{file}: {len(ROWS)} rows")
