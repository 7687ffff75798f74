"""A GPU's tests write what they measure into reports/gpu.csv. Without a GPU they are skipped, or run on the CPU where SYMBIOSIS_GPU_TESTS=cpu says so."""
import os
import platform
from pathlib import Path

import pandas as pd
import pytest
import torch

from symbiosis_nb.core import default_device, hardware
from symbiosis_nb.data.sources import open_faces, open_parsing

ROOT = Path(__file__).parents[2]
STAND_IN = os.environ.get("SYMBIOSIS_GPU_TESTS") == "cpu"


def pytest_collection_modifyitems(items):
    here = [i for i in items if Path(__file__).parent in Path(i.fspath).parents]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not (torch.cuda.is_available() or STAND_IN): item.add_marker(pytest.mark.skip(reason="no CUDA device; SYMBIOSIS_GPU_TESTS=cpu tries the rest"))


@pytest.fixture(scope="session")
def device(): return default_device()


@pytest.fixture(scope="session")
def measured():
    "A list of rows; written when all is over: reports/gpu.csv for a GPU, a file of its own for the stand-in"
    rows = []
    yield rows
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"stand-in: {hardware()}, {platform.machine()}"
    out = Path(os.environ.get("OUT") or ROOT/"reports")/("gpu.csv" if torch.cuda.is_available() else "local/gpu_stand_in.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).assign(device=where, torch=torch.__version__).to_csv(out, index=False)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    os.environ["SYMBIOSIS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return open_faces(profile="smoke"), open_parsing(profile="smoke"), tmp_path_factory.mktemp("runs")
