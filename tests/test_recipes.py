"Recipes are what the papers say: iterations and not epochs, decay in the gradient, a set's own length; and what a run learns from stands in it."
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader

from helpers import picture_table
from symbiosis_nb.core import DataError, seed_everything
from symbiosis_nb.data.loaders import Field, attribute_dls
from symbiosis_nb.data.pixels import pixel_store
from symbiosis_nb.jobs import make_job
from symbiosis_nb.learner import OPTIMIZERS, adversarial_learner, attribute_learner
from symbiosis_nb.methods import METHODS, VARIANTS, get_method
from symbiosis_nb.models.abstraction import GlobalGenerator, MultiscaleDiscriminator
from symbiosis_nb.models.adversarial import Adversary
from symbiosis_nb.models.backbones import backbone
from symbiosis_nb.models.pooling import AvgPool
from symbiosis_nb.recipes import Recipe, fine_tuning, make_profile, steps
from symbiosis_nb.runs import run

torch.set_num_threads(1)


@pytest.fixture
def table(tmp_path): return picture_table(tmp_path/"pictures")


@pytest.fixture
def learner(table):
    def make():
        seed_everything(0)
        dls = attribute_dls(table, [Field("image", pixel_store(table.paths, (40, 32)))], bs=16, augment=None)
        return attribute_learner(dls, AvgPool(backbone("small", .25), 40), precision="float32")
    return make


def fit(learn, recipe):
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(recipe)
    return learn


@pytest.mark.parametrize("iterations", [1, 3, 4, 6, 9])
def test_so_many_iterations_whatever_the_size_of_the_set(learner, iterations):
    learn = learner()
    assert len(learn.dls.train) == 4
    fit(learn, Recipe(lr=1e-3, iterations=iterations, bs=16, schedule=partial(steps, at=(.5,))))
    assert learn.train_iter == iterations and len(learn.recorder.lrs) == iterations
    assert np.allclose(learn.recorder.lrs, [1e-3 if k/iterations < .5 else 1e-4 for k in range(iterations)])   # shares of the iterations
    assert len(learn.recorder.values) == -(-iterations//4)   # every epoch is measured, the last one too


def test_epochs_that_are_asked_for_come_before_iterations(table):
    job = make_job("ssp", table, "paper", overrides=dict(epochs=2))
    assert (job.profile.recipe.epochs_on(7), job.profile.recipe.iterations) == (2, None)


def test_training_ends_when_validation_no_longer_rises(table, tmp_path):
    r = run("avg_pool", table, "smoke", out=tmp_path/"runs", precision="float32", epochs=30, patience=2)
    assert len(r.log) == r.log.mAP.idxmax() + 1 + 2 < 30   # two epochs are waited for
    assert r.done["cost"]["epochs_timed"] == len(r.log)


def test_decay_goes_through_the_momentum():
    for name, shrunk in (("sgd", .9516), ("nesterov", .9516)):
        w = torch.nn.Parameter(torch.ones(1))
        opt = OPTIMIZERS[name]([w], lr=.01, mom=.9, wd=5e-4)
        for _ in range(1000): w.grad = torch.zeros(1); opt.step()
        assert abs(w.item() - shrunk) < 1e-4, name


@pytest.mark.parametrize("m", [*METHODS.values(), *VARIANTS.values()], ids=lambda m: m.name)
def test_no_recipe_of_a_paper_counts_epochs_but_blans(m):
    assert m.recipe.iterations or m.paper == "blan"   # which prints no length
    if m.paper == "symbiosis": assert m.recipe.optimizer == "nesterov" and m.recipe.wd == 5e-4
    for data in ("LFWA", "WIDER Attribute, train+val", "Berkeley Attributes of People, train+val"):
        own = m.on(data).recipe
        assert own.iterations is None or own.iterations >= 2_500
        if m.paper == "symbiosis": assert own.iterations == 30_000


def test_printed_lengths():
    length = lambda name, data="CelebA (aligned)": get_method(name).on(data).recipe.iterations
    assert [length(n) for n in ("pse_b", "dual_path", "g2s_1", "g2s_one")] == [20_000, 46_000, 120_000, 40_000]
    assert (length("dual_path", "LFWA"), length("pse_b", "LFWA")) == (2_500, 20_000)
    lfwa = get_method("dual_path").on("LFWA")
    rates = [lfwa.recipe.lr*lfwa.recipe.schedule(k/2_500) for k in (0, 999, 1_000, 1_999, 2_000)]
    assert np.allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5]) and lfwa.trunk == "resnet18"


def test_fine_tuning_is_a_third_of_the_iterations():
    assert fine_tuning(get_method("ssp").recipe)["iterations"] == 33_910


def test_without_a_validation_part_the_last_epoch_counts(table, tmp_path):
    whole = replace(table, split=np.where(table.split == "valid", "train", table.split), name="no validation")
    r = run("avg_pool", whole, "smoke", out=tmp_path/"runs", epochs=3, precision="float32", limit=None)
    assert np.array_equal(r.arrays["test_selected"], r.arrays["test_last"]) and "valid_targets" not in r.arrays
    assert r.config["counts"]["train"] == 80 and r.scores.AP.notna().any()


def test_balanced_training_selects_by_balanced_accuracy(table, tmp_path):
    r = run("avg_pool", table, "smoke", out=tmp_path/"runs", epochs=4, loss="balanced", precision="float32")
    assert r.done["selected_epoch"] == r.log.balanced_accuracy.idxmax()


def test_drawn_regions_are_refused_for_photographs(table, tmp_path):
    from symbiosis_nb.data.sources import open_parsing
    parsing, real = open_parsing(profile="smoke"), replace(table, name="CelebA (aligned)")
    for method in ("ssp", "sa", "dual_path", "ssp_ssg"):
        with pytest.raises(DataError, match="parsing_root"): run(method, real, "smoke", out=tmp_path/"runs", parsing=parsing)
    with pytest.warns(UserWarning, match="is drawn"): mine = run("ssp", table, "smoke", out=tmp_path/"runs", parsing=parsing)   # one's own pictures
    assert mine.config["learned_from"] == ["pictures", "synthetic parsing"]
    assert run("avg_pool", table, "smoke", out=tmp_path/"runs", parsing=parsing).config["learned_from"] == ["pictures"]


def test_a_run_names_all_that_it_learned_from(tmp_path):
    from symbiosis_nb.data.sources import open_faces, open_parsing
    faces, parsing = open_faces(profile="smoke"), open_parsing(profile="smoke")
    first = run("ssp", faces, "smoke", out=tmp_path/"runs", parsing=parsing)
    other = replace(faces, name="synthetic, again")
    then = run("ssp", other, "smoke", out=tmp_path/"runs", parsing=parsing, start=first.folder)
    assert then.config["learned_from"] == ["synthetic, again", "synthetic parsing", "synthetic faces (aligned)"]


def test_feature_matching_is_a_setting_of_the_generator():
    "Its weight reaches the loss and the name; the usual one leaves the names of older runs as they were"
    usual = make_profile("paper").generator
    none = replace(usual, matching=0.)
    assert "matching" not in usual.plain() and none.plain()["matching"] == 0.
    dls = DataLoaders(*[DataLoader([1, 2], bs=1)]*2)
    model = Adversary(GlobalGenerator(4, 2, 1), MultiscaleDiscriminator(4, 1))
    for g in (usual, none):
        learn = adversarial_learner(dls, model, g.gan, matching=g.matching, precision="float32")
        assert learn.loss_func.matching == g.matching
