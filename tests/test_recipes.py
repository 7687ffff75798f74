"Recipes are what the papers say: iterations and not epochs, decay in the gradient, a set's own length; and what a run learns from stands in it."
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader

from helpers import picture_table
from symbiosis_nb.core import DataError, seed_everything
from symbiosis_nb.data.loaders import MIRROR, WIDE, Field, attribute_dls
from symbiosis_nb.data.parts import first_share, parsing_part, tuning_apart
from symbiosis_nb.data.pixels import pixel_store
from symbiosis_nb.data.sources import open_faces, open_parsing
from symbiosis_nb.data.synthetic import make_parsing
from symbiosis_nb.jobs import helper_recipes, make_job, paper_recipe, resolve
from symbiosis_nb.learner import OPTIMIZERS, adversarial_learner, attribute_learner
from symbiosis_nb.methods import METHODS, VARIANTS, Build, get_method
from symbiosis_nb.models.abstraction import GlobalGenerator, MultiscaleDiscriminator
from symbiosis_nb.models.adversarial import Adversary
from symbiosis_nb.models.backbones import backbone
from symbiosis_nb.models.pooling import AvgPool
from symbiosis_nb.recipes import Recipe, fine_tuning, make_profile, steps
from symbiosis_nb.runs import run
from symbiosis_nb.vocab import CELEBA

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


def test_the_later_steps_of_a_chain_follow_what_is_asked(table):
    tune = lambda **asked: make_job("g2s_12", table, "paper", overrides=dict(weights="scratch", **asked)).profile.tune
    assert tune() == get_method("g2s_one").recipe and (tune(longer=.1).iterations, tune(iterations=7, bs=32).iterations) == (4000, 7)
    assert tune(iterations=7, bs=32).bs == 32 and tune(epochs=3).iterations is None
    assert make_job("g2s_12", table, "paper", overrides=dict(weights="scratch")).settings()["tune"]["iterations"] == 40_000
    table.name = "LFWA"
    assert tune().patience == 20 == get_method("g2s_one").on("LFWA").recipe.patience
    assert make_job("g2s_12", table, "demo", overrides=dict(lr=1e-2)).profile.tune.lr == 1e-3   # a profile's own is as it says


@pytest.mark.parametrize("frame, boxes, profile, faces", [("aligned", False, "paper", {}), ("whole", True, "paper", dict(faces="detected")),
                                                          ("whole", False, "paper", dict(faces="detected")), ("whole", True, "demo", {})])
def test_the_paper_profile_looks_for_faces_in_original_pictures(table, frame, boxes, profile, faces):
    table.frame = frame
    if boxes: table.boxes = np.tile([2., 2, 30, 40], (len(table), 1))
    for name in ("g2s_1", "g2s_123", "g2s_one"):
        job = make_job(name, table, profile, overrides=dict(weights="scratch"))
        assert job.options == faces and make_job(name, table, profile, overrides=dict(weights="scratch"), options=dict(faces="annotated")).options["faces"] == "annotated"
    assert make_job("ssp", table, profile).options.get("faces") is None


def test_a_generator_learns_from_the_training_pictures_alone(tmp_path):
    whole = make_parsing(tmp_path/"parsing", 24)
    joined = parsing_part(whole)
    faces = open_faces(profile="smoke")
    of = lambda name, parsing: make_job(name, faces, "smoke", parsing=parsing)
    for name in ("abstraction", "dual_path"):
        assert of(name, joined).parsing.counts() == whole.counts() and of(name, joined).folder == of(name, whole).folder
    for name in ("ssp", "sa", "naive"):
        assert of(name, joined).parsing.counts() == joined.counts() != whole.counts() and of(name, joined).folder != of(name, whole).folder
    few = first_share(joined, 25)   # tuning pictures among the few are put apart too
    assert tuning_apart(few).counts()["valid"] == few.tuning.sum() and tuning_apart(few).counts()["train"] + few.tuning.sum() == few.counts()["train"]


def test_the_papers_generator_mirrors_and_no_more():
    assert make_profile("paper").generator.recipe.augment == MIRROR and make_profile("demo").generator.recipe.augment == WIDE


def test_the_table_of_recipes_has_all_that_is_trained():
    assert [paper_recipe(m)["iterations"] for m in ("g2s_1", "g2s_12", "g2s_2", "g2s_3", "g2s_23")] == [120_000, 120_000, 40_000, 40_000, 40_000]
    assert paper_recipe("g2s_13")["later_steps"].startswith("40000") and paper_recipe("g2s_2")["later_steps"] == ""
    se = paper_recipe("pse_a", trunk="se_resnet50")
    assert (se["trunk"], se["weights"], se["iterations"], se["batch"], se["rate"]) == ("se_resnet50", "imagenet", 10_000, 256, 1e-4)
    parser, drawn = helper_recipes()
    assert (parser["training_samples"], drawn["training_samples"], drawn["epochs"]) == (2230, 2000, 200)


def test_the_kept_table_of_recipes_is_current(tmp_path):
    "README sends people there: what it says is what would train today"
    root, file = Path(__file__).parents[1], tmp_path/"recipes.csv"
    subprocess.run([sys.executable, str(root/"scripts"/"recipes.py"), str(file)], check=True)
    assert file.read_text() == (root/"reports"/"recipes.csv").read_text(), "run scripts/recipes.py"
    kept = pd.read_csv(file, keep_default_na=False).set_index(["method", "data"])
    assert {"parser of masks", "generator of abstraction images"} <= set(kept.index.get_level_values(0)) and "se_resnet50" in set(kept.trunk)
    assert kept.loc[[("pse_b", "LFWA")]].training_samples.tolist() == ["75156"]   # 6,263 pictures and eleven copies of each (pse, 1)
    naive = kept.loc[[("naive", "CelebA")]].note.iloc[0]
    assert naive == get_method("naive").note and "bilinear" not in naive


def test_blan_drops_out_where_its_paper_trains_it(table):
    "Not in trainings of a few hundred steps, which underfit with it, whatever the trunk"
    rates = {}
    for profile in ("demo", "onecycle", "paper"):
        net = get_method("blan").build(Build(table.vocab, (64, 48), "small", .25, options=make_job("blan", table, profile, overrides=dict(backbone="small", weights="scratch", size=(64, 48))).options))
        rates[profile] = {ac.drop.p for ac in net.classifiers}
    assert rates == dict(demo={0.}, onecycle={0.}, paper={.5})


@pytest.mark.parametrize("profile", ["demo", "onecycle"])
def test_the_control_of_blan_differs_in_its_dropout_alone(table, profile):
    options = lambda name: make_job(name, table, profile, overrides=dict(backbone="small", weights="scratch", size=(64, 48))).options
    assert options("blan_dropout") == {**options("blan"), "dropout": .5}


def test_the_parser_of_table_7_has_the_attribute_networks_map():
    "Only the start differs there (symbiosis 4): with a stride its trunk had the plain last map, and the weights fitted all the same"
    from symbiosis_nb.needs.masks import PARSERS, parser_config
    asked = resolve(make_profile("onecycle size=112x92 weights=scratch"), get_method("sa")); parsing = open_parsing(profile="smoke")
    config = parser_config(parsing, replace(asked, parser="aspp"))
    alone, joint = PARSERS["aspp"](7, config), get_method("sa").build(Build(CELEBA, asked.size, asked.backbone, n_regions=11, options=dict(taps=None), stride=asked.stride))
    assert alone.backbone.map_shapes(asked.size)[-1] == joint.backbone.map_shapes(asked.size)[-1] == (320, 7, 6)
    assert not {"stride"} & {*parser_config(parsing, asked), *parser_config(parsing, replace(asked, parser="aspp", stride=None))}   # other parsers are called as before
