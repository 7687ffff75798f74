"One contract for every registered method: shapes, gradients to every parameter, `where` in range, save and load, resume, ONNX, a smoke run."
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from symbiosis_nb.core import DataError, seed_everything
from symbiosis_nb.data.loaders import attribute_loader
from symbiosis_nb.data.sources import open_faces, open_parsing
from symbiosis_nb.inputs import Job, limit_table, prepare, resolve
from symbiosis_nb.learner import Checkpoint, attribute_logits, attribute_learner, predict
from symbiosis_nb.methods import METHODS, get_method, make_profile
from symbiosis_nb.published import PAPERS, golden
from symbiosis_nb.runs import Predictor, build_model, run

torch.set_num_threads(2)
CONTROLS = [get_method(n) for n in ("avg_pool_bn", "sa_alone", "ssp_template", "ssp_grid", "ssg_ungated")]
TRAINED = [m for m in METHODS.values() if m.build] + CONTROLS


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    import os
    os.environ["SYMBIOSIS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return open_faces(profile="smoke"), open_parsing(profile="smoke"), tmp_path_factory.mktemp("runs")


def job_for(name, data):
    table, parsing, out = data
    m = get_method(name)
    profile = resolve(make_profile("smoke"), m)
    return Job(m, limit_table(table, profile.limit), profile, 0, parsing, options=m.options, out=out)


@pytest.mark.parametrize("m", METHODS.values(), ids=lambda m: m.name)
def test_is_described(m):
    assert m.paper in PAPERS and m.title and (m.build or m.parts or m.chain)
    assert len(golden(m.rows)) or not m.rows


@pytest.mark.parametrize("m", TRAINED, ids=lambda m: m.name)
def test_model_contract(m, data):
    job = job_for(m.name, data)
    ready = prepare(job)
    seed_everything(0)
    model = build_model(job, ready.n_regions)
    learn = attribute_learner(ready.dls(), model, ready.loss, precision="float32")
    b = learn.dls.train.one_batch()
    n_inp = learn.dls.train.n_inp
    model.train()
    model.joint = hasattr(model, "training_outputs")   # as the learner asks during a step
    out = model(*b[:n_inp])
    assert attribute_logits(out).shape == (len(b[0]), 40)
    learn.loss_func(out, *b[n_inp:]).backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not dead, f"no gradient reaches {dead}"
    model.joint = False
    model.eval()
    assert model(*b[:n_inp]).shape == (len(b[0]), 40)
    if hasattr(model, "where"):
        with torch.no_grad(): where = model.where(*b[:n_inp])
        assert where.shape[:2] == (len(b[0]), 40) and where.min() >= 0 and where.max() <= 1 + 1e-5


@pytest.mark.parametrize("m", METHODS.values(), ids=lambda m: m.name)
def test_smoke_run_and_weights(m, data):
    table, parsing, out = data
    r = run(m.name, table, "smoke", out=out, parsing=parsing)
    logits, labels, known = r.predictions()
    assert logits.shape == labels.shape == known.shape and np.isfinite(logits).all()
    assert list(r.scores.index) == list(table.names)
    if not m.build: return
    job = job_for(m.name, data)
    ready = prepare(job)
    model = build_model(job, ready.n_regions)
    model.load_state_dict(load_file(r.folder/"model.safetensors"))
    again, _ = predict(model, attribute_loader(job.table, ready.fields, "test", 2*job.profile.recipe.bs, ok=ready.ok), r.done["precision"])
    assert np.array_equal(again, logits)


@pytest.mark.parametrize("m", TRAINED, ids=lambda m: m.name)
def test_resume(m, data, tmp_path, monkeypatch):
    table, parsing, out = data
    train = lambda where: run(m.name, table, "smoke", out=where, parsing=parsing, epochs=2)
    whole, after = train(out), Checkpoint.after_epoch
    for helper in [*out.glob("parser-*"), *out.glob("generator-*")]: shutil.copytree(helper, tmp_path/helper.name)
    def cut(self): after(self); raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "after_epoch", cut)
        with pytest.raises(KeyboardInterrupt): train(tmp_path)
    assert (tmp_path/whole.folder.name/"checkpoint.pt").is_file() and not (tmp_path/whole.folder.name/"done.json").exists()
    again = train(tmp_path)
    assert again.arrays.keys() == whole.arrays.keys() and again.log.equals(whole.log)
    for k, v in whole.arrays.items(): assert np.array_equal(again.arrays[k], v, equal_nan=v.dtype.kind == "f"), k


@pytest.mark.parametrize("m", TRAINED, ids=lambda m: m.name)
def test_onnx(m, data, tmp_path):
    table, parsing, out = data
    r, photos = run(m.name, table, "smoke", out=out, parsing=parsing), table.paths[:3]
    if m.needs == "boxes":
        with pytest.raises(DataError, match="needs landmarks with every picture"): Predictor.load(r.folder)
        return
    ask = Predictor.load(r.folder)
    if m.needs == "crop":
        with pytest.raises(ValueError, match="ONNX cannot cut"): ask.to_onnx(tmp_path/"model.onnx")
        return
    back = Predictor.load(ask.to_onnx(tmp_path/"model.onnx"))
    np.testing.assert_allclose(back(photos, aligned=True), ask(photos, aligned=True), atol=1e-4)
