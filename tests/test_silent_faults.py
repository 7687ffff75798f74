"What once gave wrong numbers without a word: each fault as it was found, and what is right."
import math
import os
import warnings
import zipfile
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import matplotlib.pyplot as plt
from helpers import picture_table, stopped_after
from PIL import Image
from symbiosis_nb import metrics as M, sights
from symbiosis_nb.callbacks import Selection
from symbiosis_nb.claims import Ledger, judge, kept_difference
from symbiosis_nb.code import code_digest, source_digest
from symbiosis_nb.combine import gather_columns, mean_arrays, mean_logits
from symbiosis_nb.core import DataError, file_said, told_apart, write_json
from symbiosis_nb.data.aligned import aligned
from symbiosis_nb.data.crops import NO_FACES, Faces
from symbiosis_nb.data.files import list_images
from symbiosis_nb.data.official import celebamask_hq, lapa
from symbiosis_nb.data.own import parsing_from_folders, table_from_csv, table_from_parquet
from symbiosis_nb.data.parts import held_out
from symbiosis_nb.data.pictures import open_picture
from symbiosis_nb.data.pixels import SizedStore, array_store, label_store, pixel_store
from symbiosis_nb.data.protocols import cross, enlarge, fewer, resplit
from symbiosis_nb.data.tables import ParsingTable, relabel
from symbiosis_nb.jobs import make_job, resolve, weights_for
from symbiosis_nb.kept import Run, check_pictures, check_rows, keep, keep_small, kept_runs, named_again, nameless, region_names
from symbiosis_nb.localize import last_maps, localisation, overlap, unseen
from symbiosis_nb.methods import METHODS, family, get_method
from symbiosis_nb.paper_tables import averaged
from symbiosis_nb.readings import locality, masks_seen, per_classifier
from symbiosis_nb.recipes import make_profile
from symbiosis_nb.report import write_frames
from symbiosis_nb.runs import run
from symbiosis_nb.needs.boxes import box_masks
from symbiosis_nb.needs.crops import detected_faces, face_view
from symbiosis_nb.stats import Mean, cluster_weights
from symbiosis_nb.vocab import HELEN, LAPA, AttributeVocab, RegionVocab

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
MADE_UP = pd.DataFrame(dict(AP=[.5])), pd.DataFrame(dict(epoch=[0], train_loss=[.7]))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))


@pytest.fixture
def table(tmp_path): return picture_table(tmp_path/"pictures")


def a_run(folder, seed=0, model=None, names=("a", "b", "c"), **config):
    "A finished run of three pictures"
    logits = np.array([[.5], [-1], [2.]], np.float32)
    arrays = dict(test_selected=logits, test_last=logits, test_targets=(logits > 0).astype(np.float32), test_names=np.array(names), test_identity=np.array([1, 1, 2]))
    asked = dict(method="mine", vocab="v", attributes=["hat"], seed=seed, data="a set", data_digest="0") | config
    keep(folder, asked, dict(note=""), *MADE_UP, model, predictions=arrays)
    return Run(folder)


# how long a training is

@pytest.mark.parametrize("text, given, epochs, iterations", [
    ("demo iterations=400", dict(epochs=0), 0, None), ("onecycle iterations=500 epochs=2", {}, 2, None), ("demo epochs=2 iterations=40", {}, 2, 40),
    ("demo", dict(epochs=3, iterations=40), 3, 40), ("demo longer=4", dict(longer=1), 24, None), ("demo longer=2", dict(longer=.5), 6, None)])
def test_a_later_length_wins_and_two_factors_are_both_meant(text, given, epochs, iterations):
    recipe = resolve(make_profile(text, **given), get_method("avg_pool")).recipe
    assert (recipe.epochs, recipe.iterations) == (epochs, iterations)


def test_from_scratch_stays_where_no_weights_are_given(): assert resolve(make_profile("onecycle weights=scratch", weights=None), get_method("ssp")).weights is None


@pytest.mark.parametrize("text", ["demo lr=-1", "demo epochs=2.5", "demo longer=0"])
def test_settings_in_words_are_checked_for_every_run(text, table):
    with pytest.raises(ValueError, match="give a"): make_job("avg_pool", table, text)


def test_a_misspelt_option_of_a_chain_is_refused(table):
    make_job("g2s_1", table, "smoke", options=dict(dropout=.1))
    for method in ("g2s_1", "g2s_123"):
        with pytest.raises(ValueError, match=r"takes no options \(droput\): it reads .*dropout"): make_job(method, table, "smoke", options=dict(droput=.5))


def test_a_network_is_trained_as_the_set_that_it_learns_from():
    assert [family(n) for n in ("CelebA (aligned) to LFWA, aligned", "LFWA, aligned to CelebA (aligned)", "LFWA, aligned")] == ["CelebA", "LFWA", "LFWA"]


# names: what decided a number is in them

def test_a_decorated_function_counts_by_its_own_code():
    assert len({source_digest(f) for f in (last_maps, per_classifier, masks_seen)}) == 3
    bodies = [f"import torch\n@torch.no_grad()\ndef build(b): return b + {k}\n" for k in (1, 2)]
    digests = set()
    for k, body in enumerate(bodies):
        space = {"__name__": "__main__"}
        exec(compile(body, f"<cell {k}>", "exec"), space)
        digests.add(code_digest(space["build"]))
    assert len(digests) == 2


def test_another_file_of_the_same_name_is_another_start(tmp_path, table):
    names = []
    for content in (b"one", b"two"):
        (tmp_path/"w.pth").write_bytes(content)
        names.append(make_job("avg_pool", table, "smoke", overrides=dict(weights=str(tmp_path/"w.pth"))).settings()["weights"])
    assert names[0] != names[1] and all(n.startswith("w.pth ") for n in names) and file_said(tmp_path/"none.pth") == "none.pth"


def test_one_file_of_weights_or_names():
    with pytest.raises(ValueError, match="one file for all"): weights_for("ssp", "a.pth b.pth")


# people

def test_unknown_people_are_people_of_their_own(table):
    assert told_apart([-1, 3, -1, 3]).tolist() == [-1, 3, -3, 3]
    arrays = dict(test_targets=np.arange(9.)[:, None], test_identity=np.array([-1]*6 + [3, 3, 4]))
    passed_on = nameless(arrays)["test_identity"]
    assert sorted(passed_on.tolist()) == [-1]*6 + sorted(passed_on[passed_on >= 0].tolist()) and len(np.unique(cluster_weights(passed_on, 9), axis=1).T) == 8
    nobody = table.but(identity=np.full(len(table), -1))
    train = int((table.split == "train").sum())
    assert fewer(nobody, 10).counts()["train"] == round(train/10)
    joined = int((table.split != "test").sum())
    assert abs(held_out(nobody, .1).counts()["valid"] - joined/10) < 1.5
    assert len(np.unique(cross(nobody, nobody).identity[-table.counts()["test"]:])) == table.counts()["test"]
    assert min(resplit(nobody, by="person").counts().values()) > 0


# runs that stand together

def test_one_row_is_one_training(tmp_path):
    first = a_run(tmp_path/"mine-0", profile=dict(augment=True, recipe=dict(augment="x")))
    for k, other in enumerate((dict(profile=dict(augment=False, recipe=dict(augment="x"))), dict(start="celeba"), dict(parsing="helen"), dict(data="another"), dict(code=["1"]))):
        second = a_run(tmp_path/f"mine-{k + 1}", seed=1, **{**dict(profile=first.config["profile"]), **other})
        with pytest.raises(DataError, match="was trained in two ways"): check_rows([first, second])
    check_rows([first, a_run(tmp_path/"mine-9", seed=1, profile=first.config["profile"], data_digest="1")])   # other people of the same set


def test_runs_on_other_pictures_are_not_compared(tmp_path):
    first, other = a_run(tmp_path/"mine-0"), a_run(tmp_path/"mine-1", seed=1)
    check_pictures([first, other])
    other.arrays = {k: v[::-1] for k, v in other.arrays.items()}
    with pytest.raises(DataError, match="not measured on the same pictures"): check_pictures([first, other])
    with pytest.raises(DataError, match="two ways|twice"): kept_difference(ROOT/"reports"/"strength_lfwa", ROOT/"reports"/"lfwa_short_official")


@pytest.mark.parametrize("join", [lambda a, b: mean_arrays([a, b]), lambda a, b: gather_columns({"hat": a, "tie": b}, None, ("hat", "tie"))])
def test_networks_that_saw_other_images_are_not_joined(join, tmp_path):
    a, b = a_run(tmp_path/"a-0"), a_run(tmp_path/"b-0")
    assert len(join(a, b)["test_selected"]) == 3
    with pytest.raises(DataError, match="saw different test images"): join(a, a_run(tmp_path/"c-0", names=("a", "b", "d")))


def test_adopting_leaves_a_run_of_ones_own_alone(tmp_path):
    mine = a_run(tmp_path/"runs"/"mine-0123abcd", model=nn.Linear(1, 1))
    small = Run(keep_small(mine, tmp_path/"kept"))
    mine.arrays["test_selected"][:] = 9
    back = Run(named_again(small, mine.arrays, tmp_path/"runs"))
    assert "adopted" not in back.done and back.has_weights and back.arrays["test_selected"].dtype == np.float32
    again = [Run(named_again(small, Run(back.folder).arrays, tmp_path/"others")) for _ in range(2)]   # an adopted one may be adopted again
    assert all("adopted" in r.done and not r.has_weights for r in again)


def test_a_row_that_averages_is_found_by_its_parts(tmp_path):
    for name in ("ssp-0", "ssg-0"): keep_small(a_run(tmp_path/"runs"/name), tmp_path/"reports"/"one"/"predictions")
    pd.DataFrame(dict(folder=["ssp-0", "ssp-0 + ssg-0"], method=["ssp", "ssp_ssg"], commit="")).to_csv(tmp_path/"reports"/"one"/"runs.csv")
    assert [(r.folder.name, r.method) for r in kept_runs(tmp_path/"reports"/"one")] == [("ssp-0", "ssp"), ("ssg-0", "mine")]


# selection, verdicts, tables

def test_without_a_score_the_newest_weights_count():
    def chosen(values):
        select = Selection()
        select.model, select.recorder = nn.Linear(1, 1), SimpleNamespace(metric_names=["epoch", "train_loss", "mAP", "time"], values=[])
        for epoch, value in enumerate(values):
            select.epoch = epoch; select.recorder.values.append([0., value]); select.after_epoch()
        return select.epoch_of_best
    assert [chosen(v) for v in ([math.nan]*3, [math.nan, .5, .9], [math.nan, .9, .5], [.9, math.nan, .5])] == [2, 2, 1, 0]


def test_without_a_validation_part_nothing_is_validated(table, tmp_path):
    whole = held_out(table, 0.)
    r = run("avg_pool", whole, "smoke", out=tmp_path, precision="float32", epochs=3, patience=1)
    assert "selected_epoch" not in r.done and r.done["rising"] is False
    assert r.log.mAP.isna().all() and r.log.train_loss.notna().all() and len(r.log) == 3   # waiting for training AP would end it


def test_the_part_that_fails_is_the_weakest():
    fixed = lambda v, spread: Mean({0: (v, v + spread*np.linspace(-1, 1, 1000))})
    told = judge([("A", fixed(.05, .02), "not better"), ("B", fixed(0., .16), "not better")], "AP")
    assert told["verdict"] == "does not hold" and told["difference"] == "+5.00" and float(told["together"].rstrip("%")) == 0


def test_a_table_that_is_empty_now_does_not_stay(tmp_path):
    write_frames(tmp_path, gains=MADE_UP[0]); write_frames(tmp_path, gains=MADE_UP[0].iloc[:0])
    ledger = Ledger("pse", "a set"); ledger.fact("pse-08", True, "more", "more"); ledger.write(tmp_path); Ledger("pse", "a set").write(tmp_path)
    assert not list(tmp_path.glob("*.csv"))


def test_a_broken_picture_that_was_left_out_stops_no_reading(table, tmp_path):
    broken = np.flatnonzero(table.split == "test")[1]
    table.paths[broken].write_bytes(b"no picture")
    r = run("avg_pool", table, "smoke", out=tmp_path, precision="float32", on_bad="skip")
    assert len(locality(r, table)) == table.counts()["test"] - 1 == sum(len(b[0]) for b in unseen(r, table))


def test_a_parsing_network_is_not_validated_on_its_training_part(table, regions, tmp_path):
    r = run("sa", held_out(table, 0.), "smoke", out=tmp_path, parsing=regions({"hair": (255, 0, 0), "skin": (0, 0, 255)}), precision="float32")
    assert "selected_epoch" not in r.done and r.log.mAP.isna().all() and r.log.valid_loss.isna().all() and r.log.train_loss.notna().all()


def test_a_row_that_averages_parses_nothing(table, regions, tmp_path):
    "Only what holds of all its networks is said of it"
    parsing = regions({"hair": (255, 0, 0), "skin": (0, 0, 255)})
    parts = [run("sa", table, "smoke", seed, tmp_path, parsing, precision="float32", epochs=2) for seed in (0, 1)]
    parts[1].done["rising"] = not parts[0].done["rising"]
    both = averaged(parts, "sa_twice", table.vocab)
    assert not {"parsing", "rising", "selected_epoch"} & set(both.done) and both.regions is None and parts[0].regions is not None
    assert both.done["precision"] == "float32" and both.done["cost"]["parameters"] == 2*parts[0].done["cost"]["parameters"]


def test_regions_go_by_the_names_of_their_own_set(tmp_path):
    "Eleven parts of one's own are not Helen's"
    names = [f"part {i}" for i in range(11)]
    r = a_run(tmp_path/"mine-0", parsing=dict(name="mine", regions=names))
    r.arrays["parsing_confusions"], r.done["n_regions"] = np.ones((2, 11, 11), int), 11
    assert r.regions.index.tolist() == names == list(region_names(r))


def test_every_network_sees_the_picture_in_its_own_size(table, tmp_path, monkeypatch):
    seen = []
    def look(folder): return lambda x: seen.append((Path(folder).name.split("-")[0], tuple(x.shape[-2:]))) or torch.rand(len(x), 40, 3, 3)
    monkeypatch.setattr(sights, "looks", look)
    shapes = dict(avg_pool=(40, 32), spp_net=(64, 48))
    runs = [run(m, table, "smoke", out=tmp_path, precision="float32", size=size) for m, size in shapes.items()]
    sights.where_sheet(runs, table); assert dict(seen) == shapes
    monkeypatch.setattr(sights, "last_maps", lambda folder, x: look(folder)(x))
    sights.top_activations(*runs, table); assert dict(seen[2:]) == shapes
    plt.close("all")


def test_places_that_tie_share():
    "A flat map is right by chance, wherever its cue lies; without ties as sorting has it"
    cue = torch.zeros(1, 1, 4, 5, dtype=torch.bool); cue[..., :2] = True
    for where in (torch.zeros(1, 1, 4, 5), torch.ones(1, 1, 2, 2)): assert overlap(where, cue).item() == pytest.approx(.4)
    where = torch.zeros(1, 1, 4, 5); where[..., 0] = 1   # half of the eight places are surely right, four of sixteen others are
    assert overlap(where, cue).item() == pytest.approx((4 + 4*4/16)/8)
    where, cue = torch.rand(3, 2, 6, 5), torch.rand(3, 2, 6, 5) > .7
    best = [[set(w.flatten().argsort(descending=True)[:c.sum()].tolist()) for w, c in zip(*pair)] for pair in zip(where, cue)]
    by_hand = [[len(b & set(c.flatten().nonzero().flatten().tolist()))/c.sum().item() for b, c in zip(*pair)] for pair in zip(best, cue)]
    np.testing.assert_allclose(overlap(where, cue).numpy(), by_hand, rtol=1e-6)


def test_cues_of_other_pictures_are_refused():
    "One picture could not be read: every later one would be asked for its neighbour's cue"
    class Cues:
        def __getitem__(self, names): return np.ones((len(names), 2, 4, 4), bool)
    with pytest.raises(DataError, match="3 of 4 pictures could be read"):
        localisation(None, [(torch.zeros(3, 3, 4, 4), None)], Cues(), ["a", "b", "c", "d"], np.ones((4, 2)))


def test_sure_networks_stay_as_sure():
    "A clip at 1e-7 made one score of everything beyond 16"
    x = np.array([[-60., 0, 17, 18, 40]])
    np.testing.assert_allclose(mean_logits([x, x]), x, atol=1e-12)
    assert (np.diff(mean_logits([x, x + 1])) > 0).all()
    p = lambda v: 1/(1 + np.exp(-v)); y = np.array([[1., -2, 0, .5, -.5]])
    np.testing.assert_allclose(p(mean_logits([x, y])), (p(x) + p(y))/2)


def test_infinite_scores_tie_too():
    "AP of log(0) does not depend on the order of the rows"
    y = np.array([[1], [0], [1], [0]]); s = np.array([[np.inf], [np.inf], [0], [-np.inf]])
    assert {float(M.average_precision(s[p], y[p])[0]) for p in map(list, permutations(range(4)))} == {.5*(1/2) + .5*(2/3)}


def test_a_claim_that_is_asked_twice_counts_once(tmp_path):
    ledger = Ledger("pse", "a set", tmp_path); mean = Mean({0: (.1, .1 + np.linspace(-.01, .01, 100))})
    for value in ("less", "more"): ledger.fact("pse-08", True, value, "more"); ledger.own({"AP": [("a − b", mean)]})
    assert [r["parts"] for r in ledger.rows] == ["more"] and len(ledger.others) == 1
    ledger.fact("pse-08", True, "more", "more", data="another set"); assert len(ledger.rows) == 2
    assert len(pd.read_csv(tmp_path/"claims.csv")) == 2 and len(pd.read_csv(tmp_path/"own_comparisons.csv")) == 1


def test_what_nobody_answered_does_not_hold():
    ledger = Ledger("pse", "a set"); said = lambda holds: ledger.fact("pse-08", holds, "", "").verdict.item()
    assert [said(h) for h in (True, [True, False], [False], np.nan, [True, np.nan])] == [
        "holds", "cannot tell: seeds differ", "does not hold", "cannot tell: not defined here", "cannot tell: not defined here"]
    with pytest.raises(ValueError, match="one per seed"): said([])


# pictures and labels

def test_two_pictures_of_one_name_in_an_archive_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path/"img.zip", "w") as z:
        for folder in ("aligned", "whole"): z.writestr(f"{folder}/1.jpg", b"")
    with pytest.raises(DataError, match="holds 1.jpg in several folders: unpack it and name one"): list_images(tmp_path/"img.zip")
    assert set(list_images(tmp_path/"img.zip", deep=True)) == {"aligned/1.jpg", "whole/1.jpg"}


@pytest.fixture
def regions(tmp_path):
    "Pictures with masks of two colours: the upper half red, the lower blue"
    for kind in ("images", "masks"): (tmp_path/kind).mkdir()
    half = np.zeros((8, 8, 3), np.uint8); half[:4, :, 0] = half[4:, :, 2] = 255
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 20*i, np.uint8)).save(tmp_path/"images"/f"{i}.png"); Image.fromarray(half).save(tmp_path/"masks"/f"{i}.png")
    return lambda colours: parsing_from_folders(tmp_path/"images", tmp_path/"masks", colours, "mine")


def test_corrected_colours_are_read_anew(regions):
    first, mended = (regions({"hair": a, "skin": b}) for a, b in (((255, 0, 0), (0, 0, 255)), ((0, 0, 255), (255, 0, 0))))
    assert [int(label_store(t, (8, 8)).data[0, 0, 0]) for t in (first, mended)] == [0, 1]


def test_a_colour_that_nobody_named_is_no_region(regions):
    with pytest.raises(DataError, match=r"a colour that no region has, for example \(0, 0, 255\)"): regions({"hair": (255, 0, 0), "skin": (200, 150, 100)}).label(0)


def test_changed_merges_and_changed_labels_are_read_anew(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path/"a.png")
    def table(merged, label=1): return ParsingTable("mine", RegionVocab("mine", ("a", "b"), merges={"Helen": merged}), [tmp_path/"a.png"], ["train"], lambda i: np.full((4, 4), label, np.uint8))
    merged = [relabel(table(m), HELEN) for m in ((0, 1), (0, 2))]
    assert [int(label_store(t, (4, 4)).data.max()) for t in merged] == [1, 2]
    assert [int(label_store(table((0, 1), k), (4, 4)).data.max()) for k in (0, 1)] == [0, 1]


def test_sides_of_ones_own_regions_trade_places(tmp_path, regions):
    from symbiosis_nb.data.own import _region_vocab
    assert _region_vocab("background left_eye right_eye l-brow r-brow nose", "mine")[0].flip_pairs == ((1, 2), (3, 4))
    assert _region_vocab("background hair", "mine")[0].flip_pairs == ()
    with pytest.raises(DataError, match="left_eye has no other side"): _region_vocab("background left_eye", "mine")


@pytest.mark.parametrize("names, pairs", [("skin LeftEye RightEye", ((1, 2),)), ("lefteye skin righteye", ((0, 2),)), ("skin eyeL eyeR", ((1, 2),)), ("Leye Reye skin", ((0, 1),)), ("skin REye LEye", ((1, 2),)),
    ("skin LEFT_BROW RIGHT_BROW", ((1, 2),)), ("earright earleft skin", ((0, 1),)), ("leftUpperArm2 rightUpperArm2 skin", ((0, 1),)), ("Leye2 left1 Reye2 right1", ((0, 2), (1, 3))), ("bright rear lip ring lamp ramp collar URL r0 r1 R2 l3", ())])
def test_a_side_is_seen_however_it_is_written(names, pairs):
    from symbiosis_nb.data.own import _region_vocab
    assert _region_vocab(names, "mine")[0].flip_pairs == pairs
    for alone in (names.split()[k] for k, _ in pairs):
        with pytest.raises(DataError, match=f"{alone} has no other side"): _region_vocab(["skin 2", alone], "mine")


def test_a_picture_is_turned_once(tmp_path):
    exif = Image.Exif(); exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path/"a.jpg", exif=exif)
    once = open_picture(tmp_path/"a.jpg")
    assert once.size == (20, 40) == open_picture(once).size


def test_what_was_away_is_looked_for_again(table):
    where, moved = table.paths[3], table.paths[3].with_suffix(".away")
    table.pixels_digest                       # taken while it was there
    where.rename(moved)
    assert not pixel_store(table, (8, 8), on_bad="skip").ok[3]
    moved.rename(where)
    store = pixel_store(table, (8, 8))
    assert store.ok.all() and store.data[3].any() and not store.problems


def test_a_store_that_lost_its_data_is_made_again(tmp_path):
    made = []
    def make(rows):
        for r in rows:
            made.append(r)
            if len(made) == 3: raise KeyboardInterrupt   # killed half-way
            yield np.full(2, 7, np.uint8)
    build = lambda: array_store("x", "k", 4, (2,), make, chunk=1, root=tmp_path)
    with pytest.raises(KeyboardInterrupt): build()
    next(tmp_path.glob("*/data.bin")).unlink()
    assert (np.asarray(build().data) == 7).all()


def test_skipped_pixels_are_another_picture(table):
    store = pixel_store(table, (8, 8))
    assert len({SizedStore(store, (4, 4), smooth=s).digest for s in (True, False)}) == 2


def test_copies_of_another_table_are_not_taken(table, tmp_path):
    few = table.take(np.r_[0:4, 90:96])
    other = table.take(np.r_[10:14, 90:96])
    first, second = (enlarge(t, 1, out=tmp_path/"copies") for t in (few, other))
    assert not {*first.paths[10:]} & {*second.paths[10:]}


def test_what_is_split_is_split_before_copies_are_made(table):
    nobody = table.but(identity=None).take(np.r_[0:6, 90:96])
    for split in (held_out, resplit):
        with pytest.raises(DataError, match="split it first, then enlarge it"): split(enlarge(nobody, 1))


def test_boxes_are_crossed_too(table):
    boxed = table.but(frame="box", boxes=np.tile([2., 3., 20., 24.], (len(table), 1)))
    crossed = cross(boxed, boxed)
    assert crossed.frame == "box" and crossed.boxes.shape == (len(crossed), 4)
    with pytest.raises(DataError, match="has boxes and"): cross(boxed, table)


def test_landmarks_lie_in_the_box_that_is_seen(table):
    marks = np.tile(np.array([[12., 14]]*5), (len(table), 1, 1))
    boxed = table.but(frame="box", boxes=np.tile([2., 4., 20., 20.], (len(table), 1)), landmarks=marks)
    mask = np.asarray(box_masks(boxed, (20, 20)).store.data[0, 1]) > 127
    y, x = np.argwhere(mask).mean(0)
    assert abs(x - 9.5) < 1 and abs(y - 9.5) < 1   # (12, 14) less (2, 4), in pixels' centres


def test_a_margin_moves_masks_with_their_picture(table):
    marks = np.tile(np.array([[18., 22]]*5), (len(table), 1, 1))
    job = make_job("bbox", table.but(frame="aligned", landmarks=marks), "smoke", overrides=dict(margin=1.25))
    field = box_masks(job.table, job.profile.recipe.stored(job.profile.mask_size))
    made = job.need.fields(job, pixel_store(job.table, job.profile.recipe.stored(job.profile.size)))[1]
    assert made.crop == job.profile.mask_size and made.store.shape == field.store.shape and job.profile.mask_size != field.store.shape[1:]
    with pytest.raises(ValueError, match="leave margin at 1"): make_job("dual_path", table, "smoke", overrides=dict(margin=1.25))


@pytest.mark.parametrize("method", ["ssp", "ssg", "ssp_ssg", "ssp_template", "abstraction", "dual_path"])
def test_a_margin_is_refused_where_a_helper_would_see_it_in_training_alone(table, method):
    "Masks were of the stored picture, and a photograph's of its middle: what was measured was not what answered"
    with pytest.raises(ValueError, match="are of the whole picture: leave margin at 1; Augment"): make_job(method, table, "smoke", overrides=dict(margin=1.25))


@pytest.mark.parametrize("size, native", [((178, 218), True), ((356, 436), False), ((112, 92), False)])
def test_aligned_pictures_of_another_size_are_not_brought_to_celebas_first(size, native, tmp_path, monkeypatch):
    "Larger ones were shrunk to 178 x 218 and enlarged again, which the predictor does not do"
    from symbiosis_nb.predictor import Predictor
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    rng, parts = np.random.default_rng(0), ["train"]*16 + ["valid"]*4 + ["test"]*4
    for i in range(24): Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path/f"{i:02}.png")
    (tmp_path/"l.csv").write_text("file,split,fine\n" + "\n".join(f"{i:02}.png,{p},{i % 2}" for i, p in enumerate(parts)))
    own = table_from_csv(tmp_path/"l.csv", frame="aligned")
    for asked in (None, True):
        job = make_job("avg_pool", own, "onecycle", overrides=dict(backbone="small", width=.25, weights="scratch", stride=None, size=(240, 200), native=asked))
        assert ("native" in job.config()) == native
    if native: return
    r = run("avg_pool", own, "onecycle backbone=small width=.25 weights=scratch stride=None size=240x200 epochs=1 bs=8", out=tmp_path/"runs", precision="float32")
    told = Predictor.load(r.folder)([own.paths[i] for i in np.flatnonzero(own.split == "test")], aligned=True).to_numpy().T
    np.testing.assert_allclose(told, 1/(1 + np.exp(-r.predictions()[0])), atol=1e-4)


def test_a_picture_that_could_not_be_read_is_not_one_without_a_face(table, monkeypatch):
    from symbiosis_nb.data import crops
    monkeypatch.setattr(crops, "detect_faces", lambda image: Faces(np.array([[2., 2., 20., 20.]]), np.full((1, 5, 2), 9.), np.ones(1)))
    where, moved = table.paths[3], table.paths[3].with_suffix(".away")
    table.pixels_digest; where.rename(moved)
    found = detected_faces(table); view = face_view(table, "a", 16, found)
    with pytest.raises(DataError, match="no such file"): view.crop(Image.new("RGB", (36, 44)), 3)
    moved.rename(where)
    assert detected_faces(table).ok[3]


def test_turned_pictures_have_faces_of_their_own(table, monkeypatch):
    from symbiosis_nb.data import crops
    monkeypatch.setattr(crops, "detect_faces", lambda image: Faces(np.array([[2., 2., 20., 20.]]), np.full((1, 5, 2), 9.), np.ones(1)))
    assert len({detected_faces(table.but(exif=e)).folder for e in (True, False)}) == 2


def test_a_detector_of_ones_own_counts_by_what_it_does(table, tmp_path):
    def at(x): return lambda image: Faces(np.array([[x, 2., 20., 20.]]), np.array([[[x + 5, 8], [x + 15, 8], [x + 10, 12], [x + 6, 17], [x + 14, 17.]]]), np.ones(1))
    first, second = (aligned(table.take(slice(3)), detect=at(x), out=tmp_path) for x in (2., 10.))
    assert not {*first.paths} & {*second.paths}


def test_a_detector_counts_by_what_it_reads_too(table, tmp_path):
    "A default and a global that were edited gave the pictures of before"
    text = ("import numpy as np\nfrom symbiosis_nb.data.crops import Faces\nX = {x}\ndef at(x): return Faces(np.array([[x, 2., 20., 20.]]), "
            "np.array([[[x + 5, 8], [x + 15, 8], [x + 10, 12], [x + 6, 17], [x + 14, 17.]]]), np.ones(1))\n"
            "def by_global(image): return at(X)\ndef by_default(image, x={x}): return at(x)")
    def detector(name, x): space = dict(__name__="__main__"); exec(text.format(x=x), space); return space[name]
    for name in ("by_global", "by_default"):
        first, again, second = (aligned(table.take(slice(3)), detect=detector(name, x), out=tmp_path/name) for x in (2., 2., 10.))
        assert first.paths == again.paths and not {*first.paths} & {*second.paths}


def test_a_store_of_pictures_counts_by_what_reads_them(tmp_path):
    "All lambdas have one name: a grey reading gave the coloured pixels of before"
    from symbiosis_nb.data.pixels import pixel_store
    paths = [tmp_path/f"{i}.png" for i in range(3)]
    for i, p in enumerate(paths): Image.new("RGB", (8, 8), (40*i + 20, 0, 0)).save(p)
    how = dict(size=(8, 8), root=tmp_path/"stores")
    colour, again, grey = (pixel_store(paths, read=f, **how) for f in (
        lambda p: Image.open(p).convert("RGB"), lambda p: Image.open(p).convert("RGB"), lambda p: Image.open(p).convert("L").convert("RGB")))
    assert colour.folder == again.folder != grey.folder and list(grey.data[1, 0, 0]) == [18, 18, 18]


def test_a_mended_reader_of_masks_meets_no_old_labels(tmp_path):
    "`label_files` told when a file changes, and not when what reads it does; the folder's place still tells nothing"
    from symbiosis_nb.data.tables import ParsingTable
    from symbiosis_nb.vocab import RegionVocab
    def table(folder, label):
        folder.mkdir(exist_ok=True); files = [folder/f"{i}_mask.png" for i in range(3)]
        for i, f in enumerate(files): Image.new("RGB", (8, 8), (40*i + 20, 0, 0)).save(folder/f"{i}.png"); Image.new("L", (8, 8), 7).save(f)
        read = lambda i: np.where(np.asarray(Image.open(files[i])) == 7, label, 0).astype(np.uint8)
        return ParsingTable("mine", RegionVocab("mine", ("background", "face", "hair")), [folder/f"{i}.png" for i in range(3)], ["train", "valid", "test"], read, label_files=files)
    assert table(tmp_path/"masks", 1).digest == table(tmp_path/"masks", 1).digest != table(tmp_path/"masks", 2).digest


@pytest.mark.parametrize("unknown", ["-1", "nan", ""])
def test_unknown_people_of_a_sheet_are_people_of_their_own(unknown, tmp_path):
    for i in range(20): Image.new("RGB", (8, 8), (9*i, 0, 0)).save(tmp_path/f"{i}.png")
    pd.DataFrame(dict(file=[f"{i}.png" for i in range(20)], hat=[i % 2 for i in range(20)], who=[unknown]*20)).to_csv(tmp_path/"mine.csv", index=False)
    made = table_from_csv(tmp_path/"mine.csv")
    assert min(made.counts().values()) > 0 and set(made.identity) == {-1}


def test_two_files_of_one_name_are_refused(regions, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path/"images"/"0.jpg")
    with pytest.raises(DataError, match="take one of them away"): regions({"hair": (255, 0, 0), "skin": (0, 0, 255)})


def test_shards_of_two_folders_do_not_overwrite_each_other(tmp_path):
    import io
    for folder, colour in (("train", 200), ("test", 20)):
        place = tmp_path/folder/"data"; place.mkdir(parents=True)
        rows = []
        for i in range(4):
            file = io.BytesIO(); Image.new("RGB", (8, 8), (colour, i, 0)).save(file, "PNG")
            rows.append(dict(image=dict(bytes=file.getvalue(), path=None), hat=i % 2))
        pd.DataFrame(rows).to_parquet(place/"0000.parquet")
    made = table_from_parquet(tmp_path, valid_share=0)
    assert {int(np.asarray(made.open(i))[0, 0, 0]) for i in np.flatnonzero(made.split == "test")} == {20} and len({*made.paths}) == 8


def test_one_prefix_to_leave_out_is_a_word(tmp_path):
    for part in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (tmp_path/part/kind).mkdir(parents=True)
            for n in ("HELEN_1", "N4"): Image.new("L" if kind == "labels" else "RGB", (4, 4)).save(tmp_path/part/kind/f"{n}.png")
    assert {p.stem for p in lapa(tmp_path, exclude="HELEN_").paths} == {"N4"}


def test_parts_that_are_not_celebas_are_said(tmp_path):
    for kind in ("images", "masks"): (tmp_path/kind).mkdir()
    for i in range(4): Image.new("RGB", (8, 8)).save(tmp_path/"images"/f"{i}.jpg"); Image.new("L", (8, 8)).save(tmp_path/"masks"/f"{i}.png")
    (tmp_path/"split.txt").write_text("".join(f"{i}.jpg {p}\n" for i, p in enumerate(("train", "train", "valid", "test"))))
    assert any("CelebA's test faces may be among" in n for n in celebamask_hq(tmp_path).notes)


# going on, on other devices and in several processes

def test_a_resumed_optimizer_lies_where_its_weights_do():
    from symbiosis_nb.callbacks import _to_their_device
    p = nn.Parameter(torch.ones(3, device="meta"))
    opt = SimpleNamespace(state={p: dict(grad_avg=torch.ones(3), step=4)})
    _to_their_device(opt)
    assert opt.state[p]["grad_avg"].device.type == "meta" and opt.state[p]["step"] == 4


@pytest.mark.slow
def test_a_run_of_two_processes_is_measured_and_found_again(table, tmp_path):
    "The same name, as many steps, weights under their own names; begun again it is read"
    import subprocess, sys
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport torch; torch.set_num_threads(1)\nfrom helpers import picture_table\nfrom symbiosis_nb.runs import run\n"
            f"r = run('avg_pool', picture_table({str(tmp_path/'pictures')!r}), 'smoke', out={str(tmp_path/'runs')!r}, precision='float32', limit=None, epochs=2)\nprint(r.news, r.folder)\n")
    (tmp_path/"train.py").write_text(code)
    env = {**os.environ, "SYMBIOSIS_QUIET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path/"train.py")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    r = run("avg_pool", table, "smoke", out=tmp_path/"runs", precision="float32", limit=None, epochs=2)
    assert r.news == "read" and not any(k.startswith("module.") for k in r.weights()) and len(r.log) == 2
    with pytest.raises(ValueError, match="cannot be parted among 3 processes"):
        with pytest.MonkeyPatch.context() as m:
            m.setenv("WORLD_SIZE", "3"); run("avg_pool", table, "smoke", out=tmp_path/"more", precision="float32", limit=None)


def test_jobs_elsewhere_get_a_card_and_another_try(monkeypatch):
    from symbiosis_nb.combine import _died, at_once, requests
    assert "gpus_per_node" not in requests() and at_once(1) == os.cpu_count()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True); monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert requests()["gpus_per_node"] == 1 and at_once(1) == 2
    assert _died(RuntimeError("Job 3 was timed-out and not checkpointable")) and not _died(RuntimeError("a fault"))


def test_a_second_fit_waits_anew(table):
    from symbiosis_nb.data.loaders import Field, attribute_dls
    from symbiosis_nb.learner import attribute_learner
    from symbiosis_nb.models.backbones import backbone
    from symbiosis_nb.models.pooling import AvgPool
    dls = attribute_dls(table, [Field("image", pixel_store(table, (40, 32)))], bs=16, augment=None)
    learn = attribute_learner(dls, AvgPool(backbone("small", .25), 40), precision="float32", patience=1)
    with learn.no_bar(), learn.no_logging():
        learn.fit(30, 0.)
        first = len(learn.recorder.values); learn.fit(3, 0.)
    assert 1 < first < 30 and len(learn.recorder.values) >= 2


def test_measuring_a_precision_draws_nothing_from_the_loader(table):
    from symbiosis_nb.data.loaders import Field, attribute_dls
    from symbiosis_nb.learner import _time_precisions
    from symbiosis_nb.losses import masked_bce
    from symbiosis_nb.models.backbones import backbone
    from symbiosis_nb.models.pooling import AvgPool
    dl = attribute_dls(table, [Field("image", pixel_store(table, (40, 32)))], bs=16).train
    before = dl.rng.getstate()
    _time_precisions(dl, list(dl.dataset)[:16], AvgPool(backbone("small", .25), 40), masked_bce, torch.device("cpu"), 1)
    assert dl.rng.getstate() == before


@pytest.mark.parametrize("method", ["blan", "pse_b", "dmtl", "ssp_grid", "spp_net"])
def test_every_output_of_other_attributes_is_left_and_nothing_else(method, table, tmp_path):
    "Rows that are no multiple of the attributes' number (BLAN's two scores, PSE's groups), and layers that happen to have as many channels"
    from symbiosis_nb.training import build_model, output_names, start_from
    other = lambda names: tuple(f"x {n}" for n in names)
    groups = {g: other(members) for g, members in table.vocab.groups.items()}
    mine = table.but(vocab=AttributeVocab("mine", other(table.names), groups))
    first, job = run(method, table, "smoke", out=tmp_path, precision="float32", epochs=1), make_job(method, mine, "smoke")
    before = torch.random.get_rng_state()
    outputs = output_names(job)
    assert (torch.random.get_rng_state() == before).all()   # nobody else's draws change
    model = build_model(job)
    left = start_from(model, first.folder, mine.names, outputs=outputs)
    assert set(left) == outputs and outputs
    per_attribute = [k for k, v in model.state_dict().items() if k.endswith("weight") and v.ndim > 1 and k in outputs]
    assert sum(len(model.state_dict()[k]) for k in per_attribute) >= len(table.names)
    assert not start_from(build_model(make_job(method, table, "smoke")), first.folder, table.names, outputs=outputs)   # its own are all taken


def test_a_joint_network_gives_its_trunk_to_other_attributes(table, tmp_path):
    first = run("g2s_1", table, "smoke", out=tmp_path, precision="float32", epochs=1)
    mine = table.but(vocab=AttributeVocab("mine", tuple(f"x {n}" for n in table.names)))
    assert run("g2s_1", mine, "smoke", out=tmp_path, precision="float32", epochs=1, start=first.folder).news == "trained"


def test_outputs_are_not_taken_over_for_other_attributes(table, tmp_path):
    names = list(table.names)
    turned = table.but(vocab=AttributeVocab("turned", tuple(names[::-1])), labels=table.labels[:, ::-1], known=table.known[:, ::-1])
    first = run("avg_pool", table, "smoke", out=tmp_path, precision="float32")
    with pytest.raises(DataError, match="attributes"): run("avg_pool", turned, "smoke", out=tmp_path, precision="float32", start=first.folder, epochs=0)
    from symbiosis_nb.training import build_model, output_names, start_from
    job = make_job("avg_pool", turned, "smoke")
    left = start_from(build_model(job), first.folder, turned.names, outputs=output_names(job))
    assert left and all("head" in n or "classifier" in n or "fc" in n for n in left)


def changed(folder):
    "As if a network had been trained again, to other weights"
    from safetensors.torch import load_file, save_file
    from symbiosis_nb.kept import keep_arrays
    weights = load_file(folder/"model.safetensors")
    save_file({k: v + .5 if v.is_floating_point() else v for k, v in weights.items()}, folder/"model.safetensors")
    keep_arrays(folder/"predictions.npz", {k: v + .5 if k.startswith("test_") and v.dtype == np.float32 else v for k, v in Run(folder).arrays.items()})


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_whose_start_was_trained_again_says_so(table, tmp_path, monkeypatch, epochs):
    how = dict(profile="smoke", out=tmp_path, precision="float32")
    first = run("avg_pool", table, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for news in ("trained", "read"): assert run("avg_pool", table, **how, start=first.folder, epochs=epochs).news == news
    changed(first.folder)
    with pytest.warns(UserWarning, match=f"started from other weights than {first.folder.name} has now: again=True"): run("avg_pool", table, **how, start=first.folder, epochs=epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in (True, False): second = run("avg_pool", table, **how, start=first.folder, epochs=epochs, again=again)
        done = {k: v for k, v in second.done.items() if k != "start_weights"}; write_json(second.folder/"done.json", done)   # as runs of before do
        changed(first.folder); assert run("avg_pool", table, **how, start=first.folder, epochs=epochs).news == "read"


def test_a_start_is_the_one_that_a_training_began_with(table, tmp_path, monkeypatch):
    from symbiosis_nb.kept import weights_digest
    how = dict(profile="smoke", out=tmp_path, precision="float32")
    first = run("avg_pool", table, **how); before = weights_digest(first.folder)
    with stopped_after(monkeypatch, 0): run("avg_pool", table, **how, start=first.folder, epochs=2)
    changed(first.folder)
    assert run("avg_pool", table, **how, start=first.folder, epochs=2).done["start_weights"] == before != weights_digest(first.folder)


@pytest.mark.parametrize("method, member", [("avg_pool_twice", "avg_pool"), ("g2s_12", "g2s_1-"), ("g2s_12", "g2s_one")])
def test_a_combination_of_networks_that_were_trained_again_says_so(table, tmp_path, method, member):
    ask = lambda: run(method, table, "smoke", out=tmp_path, precision="float32")
    whole = ask()
    with warnings.catch_warnings(): warnings.simplefilter("error"); assert ask().news == "read"
    folder = next(f for f in tmp_path.glob(f"{member}*") if f != whole.folder and not f.name.startswith("avg_pool_twice"))
    changed(folder)
    with pytest.warns(UserWarning, match=f"was made when {folder.name} had other weights: delete its folder"): ask()


def test_a_plan_counts_what_is_trained_anew(table, tmp_path):
    from symbiosis_nb.plan import pieces
    run("avg_pool", table, "smoke", out=tmp_path, precision="float32")
    asked = [make_job("avg_pool", table, "smoke", overrides=dict(precision="float32"), out=tmp_path, again=a) for a in (False, True)]
    assert [all(p.done for p in pieces(job)) for job in asked] == [True, False]


# what is asked, and what is written

def test_people_may_have_other_numbers(tmp_path):
    first, other = a_run(tmp_path/"mine-0"), a_run(tmp_path/"mine-1", seed=1)
    other.arrays["test_identity"] = np.array([7, 7, 3])
    check_pictures([first, other])
    other.arrays["test_identity"] = np.array([7, 3, 3])
    with pytest.raises(DataError, match="not measured on the same pictures"): check_pictures([first, other])


def test_one_tensor_is_no_list_of_pictures():
    from symbiosis_nb.predictor import several
    with pytest.raises(DataError, match="no list of pictures"): several(torch.zeros(3, 8, 8))
    assert len(several(torch.zeros(2, 8, 8, 3))) == 2


def test_the_shell_replaces_nobodys_pictures(table, tmp_path, capsys):
    from symbiosis_nb import shell
    picture = tmp_path/"a.jpg"; Image.new("RGB", (40, 40)).save(picture); before = picture.read_bytes()
    assert shell.main(["--run", str(tmp_path), "--json", str(picture), str(picture)]) == 2
    assert picture.read_bytes() == before and "would replace what is there" in capsys.readouterr().err
    Image.new("RGB", (40, 40)).save(tmp_path/"a.png")
    framed = [dict(file=str(tmp_path/n), faces=[dict(box=[2, 2, 9, 9])]) for n in ("a.jpg", "a.png")]
    shell._write_pictures(framed, tmp_path)
    assert picture.read_bytes() == before and len([*tmp_path.glob("*.jpg")]) == 3
