"What the learner promises beyond its notebook: early stopping, TensorBoard, schedules, groups, ONNX and back, metrics against another library."
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fastai.callback.core import Callback
from helpers import picture_table
from symbiosis_nb import metrics as M
from symbiosis_nb.callbacks import Checkpoint
from symbiosis_nb.core import seed_everything
from symbiosis_nb.data.loaders import Augment, Field, attribute_dls
from symbiosis_nb.data.pixels import pixel_store
from symbiosis_nb.learner import _group_rates, attribute_learner, split_groups
from symbiosis_nb.methods import METHODS, Build, Recipe, inverse, poly, steps
from symbiosis_nb.models.backbones import backbone
from symbiosis_nb.models.pooling import AvgPool
from symbiosis_nb.runs import Predictor, run
from symbiosis_nb.vocab import CELEBA

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    import os
    os.environ["SYMBIOSIS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return picture_table(tmp_path_factory.mktemp("data")/"pictures")


@pytest.fixture
def dls(table): return attribute_dls(table, [Field("image", pixel_store(table.paths, (40, 32)))], bs=16, augment=None)


def quiet(learn, fit):
    with learn.no_bar(), learn.no_logging(): fit()
    return learn


def model(): seed_everything(0); return AvgPool(backbone("small", .25), 40)


def test_early_stopping_stops(dls):
    learn = attribute_learner(dls, model(), patience=1)
    quiet(learn, lambda: learn.fit_recipe(Recipe(lr=0., epochs=8, bs=16)))
    assert len(learn.recorder.values) < 8


def test_tensorboard_writes(dls, tmp_path):
    learn = attribute_learner(dls, model(), tensorboard=str(tmp_path/"tb"), path=tmp_path)
    quiet(learn, lambda: learn.fit_recipe(Recipe(epochs=1, bs=16)))
    assert any(p.stat().st_size for p in (tmp_path/"tb").rglob("events*"))


@pytest.mark.parametrize("schedule", [steps, partial(poly, power=.9, hold=10), partial(inverse, iterations=1000)])
def test_schedules_set_the_rate(dls, schedule):
    learn = attribute_learner(dls, model())
    quiet(learn, lambda: learn.fit_recipe(Recipe(lr=1e-2, epochs=4, bs=16, schedule=schedule)))
    used = np.array(learn.recorder.lrs)
    shares = np.arange(len(used))/len(used)
    assert np.allclose(used, [1e-2*schedule(s) for s in shares], rtol=1e-6)


def test_group_rates(dls):
    learn = attribute_learner(dls, model())
    n = len(split_groups(learn.model))
    quiet(learn, lambda: learn.fit_recipe(Recipe(lr=1e-3, epochs=1, bs=16, discriminative=10., schedule=lambda p: 1.)))
    rates = [h["lr"] for h in learn.opt.hypers]
    assert len(rates) == n and np.isclose(rates[-1]/rates[0], 10) and np.all(np.diff(rates) > 0)
    quiet(learn, lambda: learn.fit_recipe(Recipe(lr=1e-3, epochs=1, bs=16, group_lrs=(*[1.]*(n - 1), 8.), schedule=lambda p: 1.)))
    assert np.allclose([h["lr"] for h in learn.opt.hypers], [1e-3]*(n - 1) + [8e-3])


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.build])
def test_every_method_grades_its_trunk_alike(name):
    "`discriminative` means the same to all: the first stage a tenth, the last ones nearly all of the rate; a trunk in one group would have a tenth throughout"
    net = METHODS[name].build(Build(CELEBA, (64, 64), "small", .25, None, 11, {}, None))
    groups = split_groups(net); last = {id(p) for p in net.backbone.param_groups()[-1]}
    rates = _group_rates(Recipe(lr=1., discriminative=10.), len(groups), 0)
    assert np.isclose(rates[0], .1) and np.isclose(rates[-1], 1)
    assert min(r for r, g in zip(rates, groups) if last & {id(p) for p in g}) > .5


def test_every_parameter_is_in_one_group():
    net = model()
    listed = [id(p) for g in split_groups(net) for p in g]
    assert sorted(listed) == sorted(id(p) for p in net.parameters()) and len(set(listed)) == len(listed)


def test_same_seed_same_weights_other_seed_other(table):
    def train(seed):
        seed_everything(seed)
        dls = attribute_dls(table, [Field("image", pixel_store(table.paths, (40, 32)))], bs=16, augment=Augment())
        learn = attribute_learner(dls, AvgPool(backbone("small", .25), 40))
        return quiet(learn, lambda: learn.fit_recipe(Recipe(epochs=2, bs=16))).model.head.weight
    a, b, c = train(1), train(1), train(2)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_onnx_and_back(table, tmp_path):
    r = run("avg_pool", table, "smoke", out=tmp_path/"runs")
    ask = Predictor.load(r.folder)
    back = Predictor.load(ask.to_onnx(tmp_path/"model.onnx"))
    pictures = table.paths[:5]
    assert np.abs(ask(pictures) - back(pictures)).max().max() < 1e-4
    assert list(back(pictures).index) == list(table.names)


def test_metrics_agree_with_torchmetrics():
    from torchmetrics.classification import MultilabelAccuracy, MultilabelAUROC, MultilabelAveragePrecision
    from torchmetrics.classification import BinaryCalibrationError
    rng = np.random.default_rng(0)
    s, y = rng.normal(size=(300, 5)), rng.integers(0, 2, (300, 5))
    p, t = torch.tensor(s).sigmoid(), torch.tensor(y)
    for ours, theirs in ((M.average_precision, MultilabelAveragePrecision), (M.auroc, MultilabelAUROC), (M.accuracy, MultilabelAccuracy)):
        assert np.allclose(ours(s, y), theirs(5, average=None)(p, t).numpy(), atol=1e-6), ours.__name__
    assert np.isclose(M.calibration(s, y)["ece"][0], BinaryCalibrationError(n_bins=15)(p[:, 0], t[:, 0]).item(), atol=1e-6)


def test_a_last_pass_that_ends_early_keeps_its_columns(tmp_path):
    "A training of so many steps: its last row has a loss like the others, and selection reads average precision in it, not the column beside"
    from helpers import picture_table
    from symbiosis_nb.runs import run
    from symbiosis_nb import metrics
    for steps in (3, 6, 8):   # less than a pass of four, one and a half, two whole ones
        r = run("avg_pool", picture_table(tmp_path/"pictures"), "smoke", out=tmp_path/"runs", iterations=steps, limit=None, precision="float32")
        assert r.log.notna().all(axis=None) and len(r.log) == -(-steps//4)
        last = metrics.average_precision(*r.predictions("valid", "last"))
        assert r.log.mAP.iloc[-1] == pytest.approx(np.nanmean(last), abs=1e-4)
        assert r.log.mAP[r.done["selected_epoch"]] == r.log.mAP.max()


def test_a_learner_shows_no_training_part_as_validation(table):
    "Without a validation part fastai's table had the training part's scores under `valid_loss` and `mAP`"
    from dataclasses import replace
    alone = replace(table, split=np.where(table.split == "valid", "train", table.split))
    dls = attribute_dls(alone, [Field("image", pixel_store(alone.paths, (40, 32)))], bs=16, augment=None)
    learn = attribute_learner(dls, model()); rows = []
    def fit():
        learn.logger = rows.append
        learn.fit(1)
    quiet(learn, fit)
    told = [name for name, value in zip(learn.recorder.metric_names, rows[-1], strict=True) if value == value]   # NaN elsewhere
    assert told == ["epoch", "train_loss", "time"] and np.isnan(learn.recorder.values[0][1:]).all()
    with pytest.raises(ValueError, match="held_out"): attribute_learner(dls, model(), patience=2)
    split = attribute_learner(attribute_dls(table, [Field("image", pixel_store(table.paths, (40, 32)))], bs=16, augment=None), model())
    quiet(split, lambda: split.fit(1)); assert len(split.recorder.values[0]) == 5


def test_a_learner_that_went_on_trains_whole_the_next_time(table, tmp_path):
    def learner():
        dls = attribute_dls(table, [Field("image", pixel_store(table, (16, 16), root=tmp_path/"stores"))], 8)
        return attribute_learner(dls, AvgPool(backbone("small", .25), len(table.names)), precision="float32", path=tmp_path)
    class Count(Callback):
        n = 0
        def before_epoch(self): self.n += 1
    with learner().no_bar() as learn: learn.fit(2, cbs=Checkpoint(tmp_path/"checkpoint.pt"))
    on, count = learner(), Count()
    with on.no_bar():
        on.fit(3, cbs=[Checkpoint(tmp_path/"checkpoint.pt"), went_on := Count()])
        on.fit_one_cycle(2, cbs=count)
    assert (went_on.n, count.n) == (1, 2)


def test_mirror_images_are_averaged_in_full_precision(table, tmp_path):
    dls = attribute_dls(table, [Field("image", pixel_store(table, (16, 16), root=tmp_path/"stores"))], 8, None)
    class Short(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.linspace(.1, 1, len(table.names)))
        def forward(self, x): return (x[:, 0, 8, 1, None]*self.w).bfloat16()
    learn = attribute_learner(dls, Short(), precision="float32")
    x = dls.valid.new(shuffle=False, drop_last=False).one_batch()[0]
    with torch.no_grad(): said = [learn.model(v).float().sigmoid() for v in (x, x.flip(-1))]
    torch.testing.assert_close(learn.tta()[0][:len(x)], sum(said)/2, rtol=1e-5, atol=1e-6)
