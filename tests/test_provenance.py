"What a card says of how its rows were made, and what training does where there is nothing to select on, to go on with, or to be scaled"
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import picture_table, stopped_after
from PIL import Image
from symbiosis_nb.data.loaders import Field, attribute_dls
from symbiosis_nb.data.pixels import WHOLE, SizedStore, box_view, pad_view, pixel_store
from symbiosis_nb.data.tables import ParsingTable
from symbiosis_nb.kept import Run
from symbiosis_nb.learner import attribute_learner
from symbiosis_nb.methods import METHODS
from symbiosis_nb.models.backbones import backbone
from symbiosis_nb.models.pooling import AvgPool
from symbiosis_nb.needs.abstraction import generator_config
from symbiosis_nb.needs.masks import parser_config
from symbiosis_nb.page import write_html
from symbiosis_nb.predictor import Predictor
from symbiosis_nb.provenance import augment_said
from symbiosis_nb.published import golden
from symbiosis_nb.recipes import make_profile
from symbiosis_nb.report import Card, write_tables
from symbiosis_nb.runs import run
from symbiosis_nb.vocab import HELEN

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))


@pytest.fixture
def table(tmp_path): return picture_table(tmp_path/"pictures")


@pytest.fixture
def trained(table, tmp_path):
    "Two seeds of a method, one of another at another size and without augmentation"
    small = dict(out=tmp_path/"runs", precision="float32", limit=None, epochs=1)
    return [*(run("avg_pool", table, "smoke", s, **small) for s in (0, 1)), run("spp_net", table, "smoke", **small, size=(32, 24), augment=False)]


# what rows do not share

def test_what_rows_do_not_share_is_said_with_their_titles(table, trained):
    card = Card(trained, table, replicates=20); said = card.protocol()[""]
    first = tuple(trained[0].config["profile"]["size"])
    assert said["input size (h, w)"] == f"{first}: Avg. pooling | (32, 24): SPPNet*"
    assert said["augmentation"].startswith("flip 0.5") and said["augmentation"].endswith(": Avg. pooling | none: SPPNet*")
    assert said["trunk"] == "small, width 0.25" and "augment" not in said["recipe"]
    assert f"input {first[0]} x {first[1]} and 32 x 24." in card.measured()


@pytest.mark.parametrize("report, method, said", [("blan_46k", "blan", {"none", "flip 0.5, shift 0.04, scale 0.06, rotate 3, light 0.15, color 0.1"}),
                                                  ("general_to_specific_46k", "g2s_12", {"flip 0.5, shift 0.0333"})])
def test_what_was_not_done_to_pictures_is_not_said(report, method, said):
    runs = [Run(f) for f in (ROOT/"reports"/report/"predictions").iterdir() if f.name.startswith(f"{method}-")]
    assert {augment_said(r.config) for r in runs} == said


def test_a_card_has_every_block_that_it_must(table, trained, tmp_path):
    card = Card(trained, table, replicates=20)
    kept = write_tables(card, tmp_path/"tables", localisation=(pd.DataFrame(dict(a=[1])),)*2)
    assert {f"groups_{m}.csv" for m in ("AP", "accuracy", "balanced_accuracy")} | {"attributes_AUROC.csv", "localisation.csv"} <= {f.name for f in kept.iterdir()}
    write_tables(card, tmp_path/"tables")
    assert not (kept/"localisation.csv").exists() and not (kept/"open_labels.csv").exists()   # of an earlier study; every label is known
    scores = card.scores().loc["Avg. pooling"]
    ap = [100*r.scores.AP.mean() for r in trained[:2]]
    assert scores["AP range"] == f"{min(ap):.2f} to {max(ap):.2f}" and card.scores().loc["SPPNet*", "AP range"] == ""
    page = write_html(card, tmp_path/"card.html").read_text()
    assert f"{scores['AP range']} over seeds" in page and "By group, accuracy" in page and "Area under the ROC curve" in page


def test_boxes_are_called_boxes_and_open_labels_stand_twice(table, trained, tmp_path):
    known = trained[0].arrays["test_targets"].copy(); known[::3, 0] = np.nan
    for r in trained: r.arrays["test_targets"] = known
    boxes = replace(table, frame="box", boxes=np.tile([0., 0, 36, 44], (len(table), 1)))
    card = Card(trained, boxes, replicates=20); both = card.open_labels()
    assert both.boxes.tolist() == [16, 16] and (both.ignored != both.negative).any()
    assert "16 boxes of 8 people" in card.measured() and "test boxes" in " ".join(card.limits())
    assert "Labels that nobody specified" in write_html(card, tmp_path/"card.html").read_text()


def test_instance_scores_stand_beside_the_printed_ones(tmp_path):
    printed = golden(METHODS["dual_path"].rows).query("attribute == 'mean'").set_index("metric")
    assert {"precision", "recall", "F1", "accuracy"} <= set(printed.index) and set(printed.loc[["F1"]].digits) == {2}
    kept = next((ROOT/"reports"/"celeba_small_46k"/"predictions").glob("dual_path-*"))
    r = Run(shutil.copytree(kept, tmp_path/kept.name))   # a card keeps what it computes beside the run
    here = SimpleNamespace(name=r.config["data"], frame="aligned", names=r.vocab.names, vocab=r.vocab, paths=[], split=np.array([]), counts=lambda: r.config["counts"], notes=[])
    beside = Card([r], here, replicates=50).printed().set_index("metric")
    assert {"precision", "recall", "F1"} <= set(beside.index)
    low, high = map(float, beside.loc[["F1"]].interval.iloc[0].strip("[]").split(","))
    assert low < float(beside.loc[["F1"]].ours.iloc[0]) < high


def printed_of(rows):
    from symbiosis_nb.published import published
    return [published(r.paper, r.table, dataset="LFWA", method=r.method, attribute=r.attribute).printed.iloc[0] for r in rows.itertuples()]


def test_as_many_digits_as_were_printed():
    rows = golden(METHODS["g2s_123"].rows, "LFWA")
    assert rows.digits.tolist() == [len(v.partition(".")[2]) for v in printed_of(rows)] and {0, 1} == set(rows.digits)
    assert set(golden(METHODS["ssp"].rows).digits) == {2}


# networks that make masks and abstraction images

def test_helpers_of_another_precision_or_code_are_others(table):
    regions = ParsingTable("mine", HELEN, list(table.paths[:4]), ["train"]*4, lambda i: np.zeros((44, 36), np.uint8))
    asked = [make_profile("smoke", precision=p) for p in ("float32", "auto")]
    for config in (parser_config, generator_config):
        a, b = (config(regions, p) for p in asked)
        assert a["code"] == b["code"] and {k for k in a if a[k] != b[k]} == {"precision"}


# training

def learner_of(table, view=WHOLE, **kwargs):
    dls = attribute_dls(table, [Field("image", pixel_store(table, (40, 32), view))], bs=16, augment=None)
    return attribute_learner(dls, AvgPool(backbone("small", .25), 40), **kwargs)


def test_float16_is_refused_on_a_cpu(table):
    if torch.cuda.is_available(): pytest.skip("there is a graphics card")
    with pytest.raises(ValueError, match="float16 is for graphics cards"): learner_of(table, precision="float16")


def test_float16_goes_on_with_its_scale(table):
    from symbiosis_nb.callbacks import HalfPrecision
    cb, other = HalfPrecision(), HalfPrecision()
    for c, scale in ((cb, 8.), (other, 64.)):
        c.learn = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=scale))
        c.learn.scaler.scale(torch.ones(1))
    other.scaling = cb.scaling
    assert "scaling" in HalfPrecision.remembers and other.learn.scaler.get_scale() == 8.


def test_without_a_validation_part_nothing_is_validated(table, tmp_path):
    asked = dict(out=tmp_path/"runs", precision="float32", limit=None, epochs=2)
    whole = replace(table, split=np.where(table.split == "valid", "train", table.split))
    looked, before = [], AvgPool.forward
    with pytest.MonkeyPatch.context() as m:
        m.setattr(AvgPool, "forward", lambda self, x: (looked.append(len(x)) if not self.training else None, before(self, x))[1])
        r = run("avg_pool", whole, "smoke", **asked)
    assert r.log.train_loss.notna().all() and r.log.valid_loss.isna().all() and r.log.mAP.isna().all() and not r.done["rising"]
    assert sum(looked) < len(whole)   # the test part with both weights, and what cost asks


def test_a_run_that_is_resumed_at_its_end_keeps_its_speed(table, tmp_path, monkeypatch):
    asked = dict(out=tmp_path/"runs", precision="float32", limit=None, epochs=2)
    with stopped_after(monkeypatch, 1): run("avg_pool", table, "smoke", **asked)
    r = run("avg_pool", table, "smoke", **asked)
    assert r.news == "resumed after epoch 2" and r.done["cost"]["train_images_per_second"] > 0


def test_a_loss_that_a_model_does_not_take_is_refused_before_anything_is_trained(table, tmp_path):
    regions = ParsingTable("mine", HELEN, list(table.paths[:4]), ["train"]*4, lambda i: np.zeros((44, 36), np.uint8))
    with pytest.raises(ValueError, match="loss of its own"): run("abstraction", table, "smoke", out=tmp_path/"runs", parsing=regions, loss="balanced")
    assert not list((tmp_path/"runs").glob("generator-*"))


# a learner's own predictor

def test_a_learners_predictor_cuts_as_its_store_did(table):
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8))
    learn = learner_of(table, pad_view((40, 32)), precision="float32")
    ask = Predictor.from_learner(learn)
    padded = pad_view((40, 32)).crop(wide, 0).resize((32, 40), Image.Resampling.BILINEAR, reducing_gap=3.0)
    assert (ask.look(wide) == np.asarray(padded)).all()
    with pytest.raises(ValueError, match="which the file would not know"): ask.save("nowhere")
    each = learner_of(table, box_view(np.tile([2., 2, 20, 20], (len(table), 1))), precision="float32")
    with pytest.warns(UserWarning, match="each cut in a way of their own"): each.predict(table.paths[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error"); learner_of(table, precision="float32").predict(Image.open(table.paths[0]))


def test_a_sized_store_is_cut_as_the_native_one_is(table):
    native = pixel_store(table, (40, 32), pad_view((40, 32)))
    assert SizedStore(native, (20, 16)).view == native.view and not SizedStore(native, (20, 16), (2., 2., 20., 20.)).view.alike


def test_the_page_says_that_a_picture_is_stretched(table):
    from symbiosis_nb.demo import answer_of
    ask = Predictor.from_learner(learner_of(replace(table, frame="aligned"), precision="float32"))
    said = [answer_of(ask, Image.new("RGB", size), aligned=True).message for size in ((178, 218), (300, 100))]
    assert said[0] == "taken as it is" and "though it is 300x100" in said[1] and "stretched" in said[1]


# data

def test_parts_have_an_order_of_their_own(tmp_path):
    from symbiosis_nb.data import parsing_sets
    anno = tmp_path/"CelebAMask-HQ-mask-anno"; anno.mkdir()
    for part in ("skin", "hair", "l_eye"): Image.new("L", (4, 4), 255).save(anno/f"00003_{part}.png")
    listed, orders = parsing_sets.list_images, []
    for turn in (1, -1):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(parsing_sets, "list_images", lambda *a, **k: dict(list(listed(*a, **k).items())[::turn]))
            orders.append(list(parsing_sets._part_files(anno)["3"]))
    assert orders[0] == orders[1] == ["skin", "l_eye", "hair"]


def test_boxes_of_ones_own_aligned_pictures_have_each_its_frame(table):
    from symbiosis_nb.needs.boxes import box_masks
    Image.new("RGB", (72, 88)).save(table.paths[1])   # twice as large as the others
    marks = np.tile(np.array([[12., 18], [24, 18], [18, 24], [13, 32], [23, 32]]), (len(table), 1, 1)); marks[1] *= 2
    field = box_masks(replace(table, frame="aligned", landmarks=marks), (22, 18))
    first, second = (field.store[[i]][0].float() for i in (0, 1))
    assert (first.flatten(1).argmax(1) >= 0).all()
    centre = lambda m: torch.stack([(m.sum(d)*torch.arange(n)).sum(-1)/m.sum((1, 2)) for d, n in ((2, 22), (1, 18))], 1)
    assert (centre(first) - centre(second)).abs().max() < 1.5
