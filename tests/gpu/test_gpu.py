"""Everything that a GPU could do otherwise than a CPU: `make test-gpu`, under ten minutes."""
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException

from symbiosis_nb.bench import endless
from symbiosis_nb.core import seed_everything
from symbiosis_nb.data.loaders import Field, attribute_dls
from symbiosis_nb.data.pixels import pixel_store
from symbiosis_nb.inputs import prepare
from symbiosis_nb.jobs import make_job
from symbiosis_nb.learner import Checkpoint, attribute_learner, attribute_logits
from symbiosis_nb.localize import looks, unseen
from symbiosis_nb.losses import masked_bce
from symbiosis_nb.methods import METHODS
from symbiosis_nb.models.backbones import backbone
from symbiosis_nb.models.pooling import AvgPool
from symbiosis_nb.runs import Predictor, run
from symbiosis_nb.training import build_model

SINGLE = [n for n, m in METHODS.items() if not (m.parts or m.chain)]
FAMILIES = ["avg_pool", "ssp", "ssg", "sa", "blan", "pse_b", "dual_path"]   # one of each kind of model


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_answers(name, data, measured):
    "A smoke run of every method; where it looks, and what it says to a file, come from the device too"
    table, parsing, out = data
    start = time.perf_counter()
    r = run(name, table, "smoke", out=out, parsing=parsing)
    assert np.isfinite(r.arrays["test_selected"]).all()
    cost = r.done["cost"]
    measured.append(dict(test="smoke run", method=name, seconds=round(time.perf_counter() - start, 1), peak_memory_mib=cost["peak_memory_mib"],
                         images_per_second=cost.get("train_images_per_second"), precision=r.done.get("precision")))
    if METHODS[name].needs == "boxes": return
    answer = Predictor.load(r.folder)(table.paths[:3], aligned=True)
    assert answer.shape == (40, 3) and np.isfinite(answer.to_numpy()).all()
    if METHODS[name].parts or METHODS[name].chain or METHODS[name].needs == "crop": return
    assert torch.isfinite(looks(r.folder)(unseen(r, table, slice(4)).one_batch()[0])).all()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision(name, precision, data, device):
    "Losses of the first steps are near those in float32, and weights stay finite"
    table, parsing, out = data
    if device.type == "cpu" and precision == "float16": pytest.skip("a CPU trains in bfloat16")
    found = {}
    for how in ("float32", precision):
        job = make_job(name, table, "smoke", parsing=parsing, out=out)
        ready = prepare(job)
        seed_everything(0)
        model = build_model(job, ready.n_regions).to(device)
        learn = attribute_learner(ready.dls(), model, ready.loss, precision=how)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
        assert all(torch.isfinite(p).all() for p in model.parameters())
        found[how] = float(learn.recorder.losses[0])
    assert found[precision] == pytest.approx(found["float32"], rel=.05)


class Cut(Callback):
    "Ends training after its first epoch, once the checkpoint is written"
    order = 70
    def after_epoch(self): raise CancelFitException


@pytest.mark.parametrize("name", ["avg_pool", "ssg", "sa", "blan"])
def test_resumes_bit_exactly(name, data, device, tmp_path):
    "Cut off after an epoch and gone on with, or trained in one go: the same weights"
    table, parsing, out = data
    def fit(folder, epochs):
        job = make_job(name, table, "smoke", parsing=parsing, out=out, overrides=dict(epochs=2))
        ready = prepare(job)
        seed_everything(0)
        learn = attribute_learner(ready.dls(), build_model(job, ready.n_regions).to(device), ready.loss, precision="float32")
        cbs = [Checkpoint(folder/"checkpoint.pt"), *([Cut()] if epochs < 2 else [])]
        with learn.no_bar(), learn.no_logging(): learn.fit_recipe(job.profile.recipe, cbs=cbs)
        return {k: v.cpu() for k, v in learn.model.state_dict().items()}
    whole = fit(tmp_path/"whole", 2)
    fit(tmp_path/"cut", 1)
    assert (tmp_path/"cut"/"checkpoint.pt").is_file()
    again = fit(tmp_path/"cut", 2)
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_compiled_and_channels_last(data, device, measured):
    "A compiled step trains; convolutions lie channels last; the same losses as uncompiled"
    table, _, _ = data
    def losses(compiled):
        dls = attribute_dls(table, [Field("image", pixel_store(table, (80, 64)))], bs=16, device=device)
        seed_everything(0)
        learn = attribute_learner(dls, AvgPool(backbone("small"), 40).to(device), precision="float32", compiled=compiled)
        weight = next(p for p in learn.model.parameters() if p.ndim == 4)
        assert weight.is_contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        return np.array([float(v) for v in learn.recorder.losses]), time.perf_counter() - start
    (plain, a), (fast, b) = losses(False), losses(True)
    measured.append(dict(test="compiled, first epoch", method="avg_pool", seconds=round(b, 1), note=f"uncompiled {a:.1f} s"))
    assert np.allclose(plain, fast, rtol=1e-2)


def test_onnx(data, tmp_path):
    "A model on the device leaves as ONNX, and answers alike"
    table, parsing, out = data
    pytest.importorskip("onnxruntime"); pytest.importorskip("onnxscript")
    ask = Predictor.load(run("ssp", table, "smoke", out=out, parsing=parsing).folder)
    there = Predictor.load(ask.to_onnx(tmp_path/"ssp.onnx"))
    assert np.abs(ask(table.paths[:3], aligned=True) - there(table.paths[:3], aligned=True)).max().max() < 1e-2


def timed(step, device, n):
    "Seconds of n steps"
    if device.type == "cuda": torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(n): step()
    if device.type == "cuda": torch.cuda.synchronize()
    return time.perf_counter() - start


def extras(job, bs, device):
    "What a method takes beside the picture, made up: the parser's own time is not a step's"
    p = job.profile
    made = dict(masks=lambda: [torch.rand(bs, 7, *p.mask_size, device=device)], boxes=lambda: [torch.rand(bs, 16, *p.mask_size, device=device)],
                abstraction=lambda: [torch.rand(bs, 3, *p.size, device=device)])
    return made.get(job.method.needs, list)()


@pytest.mark.parametrize("name", SINGLE)
def test_paper_size(name, data, device, measured):
    "One method at its paper's size and batch: memory of a step, images a second, and the share of it spent waiting for data"
    table, parsing, out = data
    job = make_job(name, table, "paper", parsing=parsing, out=out, overrides=dict(weights="scratch"))
    gpu = device.type == "cuda"
    bs, steps = (job.profile.recipe.bs, 8) if gpu else (2, 1)
    bs = min(bs, 32)
    store = pixel_store(table, job.profile.recipe.stored(job.profile.size))
    image = Field("image", store, crop=job.profile.size if job.profile.recipe.margin > 1 else None)
    dls = attribute_dls(table, [image], bs, job.profile.recipe.augment, device=device)
    model = build_model(job, 7).to(device).train()
    model.joint = hasattr(model, "training_outputs") and job.method.needs != "parsing"
    loss_of, beside = getattr(model, "loss", masked_bce), extras(job, bs, device)
    opt = torch.optim.SGD(model.parameters(), 1e-6)
    def step(batch):
        x, y = batch[0], batch[-1]
        with torch.autocast(device.type, torch.bfloat16): out = model(x, *beside)
        loss_of(out if model.joint else attribute_logits(out).float(), y).backward()
        opt.step(); opt.zero_grad()
    batches = endless(dls.train); held = next(batches)
    if gpu: torch.cuda.reset_peak_memory_stats()
    step(held)
    peak = torch.cuda.max_memory_allocated()/2**20 if gpu else None
    alone = timed(partial(step, held), device, steps)
    fed = timed(lambda: step(next(batches)), device, steps)
    measured.append(dict(test="paper size", method=name, batch=bs, size="x".join(map(str, job.profile.size)), peak_memory_mib=peak, precision="bfloat16",
                         images_per_second=round(steps*bs/fed, 1), waiting_share=round(max(0, 1 - alone/fed), 3)))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["pse", "blan", "abstraction"])
def test_notebooks_with_figures(name, tmp_path):
    "Reproduction notebooks run to their end: figures take tensors off the device themselves"
    notebook = Path(__file__).parents[2]/"nbs"/f"reproduce_{name}.ipynb"
    settings = ["-p", "profile", "smoke", "-p", "out", tmp_path/"results", "-k", "python3", "--no-progress-bar"]
    command = [sys.executable, "-m", "papermill", notebook, tmp_path/"out.ipynb", *settings]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
