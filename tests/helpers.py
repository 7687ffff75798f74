"What several test files need: a small picture set, a subprocess that trains on it, a training that is stopped."
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from symbiosis_nb.callbacks import Checkpoint
from symbiosis_nb.data.tables import AttributeTable
from symbiosis_nb.vocab import CELEBA

TRAIN = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from helpers import picture_table
from symbiosis_nb.runs import run
r = run("avg_pool", picture_table({folder!r}), "smoke", out={out!r}, precision="float32", limit=None, {more})
print(r.folder)
"""


def picture_table(folder, n=96):
    "Forty-pixel pictures whose left half is brighter when the first attribute holds; made on first use"
    folder = Path(folder)
    y = np.random.default_rng(0).integers(0, 2, (n, 40))
    if not folder.is_dir():
        folder.mkdir(parents=True)
        rng = np.random.default_rng(1)
        for i in range(n):
            pixels = rng.integers(0, 120, (44, 36, 3), dtype=np.uint8)
            pixels[:, :18] += np.uint8(120*y[i, 0])
            Image.fromarray(pixels).save(folder/f"{i:03d}.png")
    split = ["train"]*(n*2//3) + ["valid"]*(n//6) + ["test"]*(n - n*2//3 - n//6)
    return AttributeTable("pictures", CELEBA, [folder/f"{i:03d}.png" for i in range(n)], y, np.ones_like(y), split, np.arange(n)//2)


def training(folder, out, cache, more="", **env):
    "A process that trains; not waited for"
    code = TRAIN.format(tests=str(Path(__file__).parent), folder=str(folder), out=str(out), more=more)
    env = {**os.environ, "SYMBIOSIS_CACHE": str(cache), "SYMBIOSIS_QUIET": "1", "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def stopped_after(monkeypatch, epoch):
    "Training is stopped, as by hand, once the checkpoint of this epoch is written"
    after = Checkpoint.after_epoch
    def stop(self):
        after(self)
        if self.epoch == epoch: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(Checkpoint, "after_epoch", stop)
        with pytest.raises(KeyboardInterrupt): yield
