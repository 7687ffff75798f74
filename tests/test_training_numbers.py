"""Splits, copies, selection, schedules, costs and modules beside values worked out here.

Each test was written because a plausible slip (a seed that is always 0, test for validation, a step early, a gate's two inputs exchanged)
changed a number, and nothing noticed."""
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from symbiosis_nb import training
from symbiosis_nb.callbacks import Selection
from symbiosis_nb.combine import gather_columns, joined_cost, valid_score
from symbiosis_nb.core import DataError
from symbiosis_nb.data.parts import held_out, moved_landmarks
from symbiosis_nb.data.protocols import cross, enlarge, fewer, resplit
from symbiosis_nb.data.tables import AttributeTable
from symbiosis_nb.models.backbones import backbone
from symbiosis_nb.models.gating import Averaged
from symbiosis_nb.models.pooling import AvgPool, region_vectors
from symbiosis_nb.models.symbiotic import SANet
from symbiosis_nb.provenance import cost_row
from symbiosis_nb.recipes import Recipe, fine_tuning, hold_then_linear, one_cycle, poly
from symbiosis_nb.vocab import CELEBA, AttributeVocab
from symbiosis_nb.wording import about_labels, between_seeds

nan = np.nan


# splits

def toy(n=200, **more):
    parts = ["train"]*(n*6//10) + ["valid"]*(n//10) + ["test"]*(n - n*6//10 - n//10)
    return AttributeTable("toy", CELEBA, [Path(f"{i}.jpg") for i in range(n)], np.eye(n, 40), np.ones((n, 40)), parts, np.arange(n)//4, **more)


@pytest.mark.parametrize("part", [lambda t, s: resplit(t, seed=s), lambda t, s: resplit(t, seed=s, by="person"), lambda t, s: held_out(t, .2, s),
                                  lambda t, s: fewer(t, 20, s)])
def test_a_seed_is_a_choice_of_its_own(part):
    chosen = [tuple(sorted(str(p) for p, s in zip(t.paths, t.split) if s == "train")) for t in (part(toy(), s) for s in (0, 1, 2, 0))]
    assert chosen[0] == chosen[3] and len(set(chosen)) == 3


def test_shares_that_add_up_to_all_leave_nothing_to_validate():
    "1 - .7 is .30000000000000004: one picture of a hundred was validated on"
    assert [resplit(toy(100), a, b).counts()["valid"] for a, b in ((.3, .7), (.7, .3), (.9, .1), (.5, .5))] == [0]*4


def test_a_share_of_the_people_is_whole_people():
    few = fewer(toy(), 10); who = few.identity[few.split == "train"]
    assert np.unique(who, return_counts=True)[1].tolist() == [4, 4, 4]


def test_copies_differ_half_are_mirrored_and_know_what_their_pictures_know(tmp_path):
    shade = np.repeat(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2)   # darker on the left
    for i in range(4): Image.fromarray(shade).save(tmp_path/f"{i}.png")
    known = np.ones((4, 40)); known[0, 1] = 0
    t = AttributeTable("toy", CELEBA, [tmp_path/f"{i}.png" for i in range(4)], np.eye(4, 40), known, ["train"]*2 + ["valid", "test"], np.arange(4))
    large = enlarge(t, copies=16, out=tmp_path/"copies")
    copies = [np.asarray(large.open(i), float) for i in range(4, len(large))]
    mirrored = sum(c[:, :10].mean() > c[:, -10:].mean() for c in copies)
    assert len(copies) == 32 and 8 <= mirrored <= 24
    assert len({c.tobytes() for c in copies}) == 32                                # of one picture too
    assert (large.known[4:20] == t.known[0]).all() and (large.known[20:] == t.known[1]).all()


def test_turned_pictures_stay_turned_in_a_crossed_table():
    assert [cross(toy(exif=a), toy(exif=b)).exif for a, b in ((False, False), (True, False), (False, True))] == [False, True, True]


def test_pictures_opened_otherwise_than_alone_are_told():
    rules = lambda a, b: [n.split(" are opened")[0] for n in cross(replace(toy(**a), name="a"), replace(toy(**b), name="b")).notes if "numbers may differ" in n]
    assert rules({}, {}) == [] and rules(dict(exif=True), dict(exif=False)) == ["pictures of b"] and rules(dict(exif=False), dict(exif=True)) == ["pictures of a"]
    assert rules({}, dict(background="black")) == ["pictures of b"]
    boxed = lambda exif: toy(frame="box", boxes=np.tile([1., 1, 4, 4], (len(toy()), 1)), exif=exif)
    with pytest.raises(DataError, match="give both the same exif"): cross(boxed(True), boxed(False))


def test_landmarks_move_by_their_own_eyes_and_seed():
    marks = np.zeros((200, 5, 2)); marks[:100, 1, 0], marks[100:, 1, 0] = 10, 1000
    t = replace(toy(), landmarks=marks)
    off = np.linalg.norm(moved_landmarks(t, 8).landmarks - marks, axis=2)
    assert off[:100].mean() == pytest.approx(.8, rel=.1) and off[100:].mean() == pytest.approx(80, rel=.1)
    assert not np.array_equal(moved_landmarks(t, 8, 1).landmarks, moved_landmarks(t, 8, 2).landmarks)


def test_held_samples_are_a_share_of_pictures_where_people_have_more_or_less():
    from symbiosis_nb.data.files import hold_out
    who = np.r_[np.repeat(np.arange(10), 50), np.arange(10, 510)]                   # ten people of fifty pictures, five hundred of one
    held = [(hold_out(np.array(["train"]*1000), who, .1, s, []) == "valid").sum() for s in range(20)]
    assert max(held) <= 100 and np.mean(held) > 60


# rows of several runs

def test_networks_one_after_another_take_their_times_together():
    same = dict(parameters=1, multiply_adds=1, peak_memory_mib=5., hardware="x")
    made = lambda seconds, speed: SimpleNamespace(done=dict(cost=dict(same, training_seconds=seconds, predict_images_per_second=speed)))
    a, b, c = made(1., 100.), made(2., 50.), made(4., 10.)
    cost = joined_cost([a, b], [a, b, c])
    assert cost["predict_images_per_second"] == pytest.approx(100/3) and cost["training_seconds"] == 7


def test_a_crop_is_chosen_on_the_validation_part():
    y = np.array([[1.], [0], [1], [0]]); good, bad = 2*y - 1, 1 - 2*y
    told = lambda valid, test: lambda split="test", which="selected": ((valid if split == "valid" else test), y, np.ones_like(y))
    r = lambda valid, test: SimpleNamespace(arrays=dict(valid_targets=y), predictions=told(valid, test))
    assert valid_score(r(good, bad)) == 1. and valid_score(r(bad, good)) < .6


def test_each_column_is_its_own():
    run_of = lambda *columns: SimpleNamespace(arrays=dict(test_last=np.array(columns).T, test_targets=np.ones((2, len(columns)))))
    assert gather_columns(dict(Hat=run_of([9, 9])), run_of([1, 2], [3, 4], [5, 6]), ("Hat", "Bald", "Male"))["test_last"].tolist() == [[9, 3, 5], [9, 4, 6]]


# training

def epochs_of(values, **settings):
    "A `Selection` after epochs with these scores, of a weight that is the epoch's number"
    select, model = Selection(), nn.Linear(1, 1)
    select.model, select.recorder = model, SimpleNamespace(metric_names=["epoch", "train_loss", "mAP", "time"], values=[])
    for epoch, value in enumerate(values):
        with torch.no_grad(): model.weight.fill_(epoch)
        select.epoch = epoch; select.recorder.values.append([0., value]); select.after_epoch()
    return select


def test_selected_weights_are_a_copy_of_the_first_best_epoch():
    select = epochs_of([.1, .7, .7, .2])
    assert select.epoch_of_best == 1 and select.weights["weight"].item() == 1.


def test_both_weights_are_measured(monkeypatch):
    select = epochs_of([.1, .7, .2])
    learn = SimpleNamespace(model=select.model, precision="float32")
    monkeypatch.setattr(training, "predict", lambda model, dl, precision: (model.weight.item(), "labels"))
    arrays, _, _ = training._measure(learn, select, dict(valid=[], test=[]), None)
    assert arrays == dict(valid_last=2., test_last=2., valid_selected=1., test_selected=1., valid_targets="labels", test_targets="labels")


def test_rising_is_best_at_the_end():
    log = lambda scores: SimpleNamespace(metric_names=["epoch", "train_loss", "mAP", "time"], values=[[0., s] for s in scores])
    rising = lambda *scores: training._rising(SimpleNamespace(recorder=log(scores)))
    assert [rising(.1, .2, .3), rising(.1, .3, .2), rising(.3, .1, .2), rising(.5)] == [True, False, False, False]


def test_the_majority_is_that_of_the_training_part(monkeypatch):
    kept = {}
    monkeypatch.setattr(training, "keep", lambda *a, predictions, **k: kept.update(predictions)); monkeypatch.setattr(training, "score", lambda *a: None)
    t = toy(); labels = np.zeros((200, 40)); labels[120:] = 1
    training.finish(SimpleNamespace(table=replace(t, labels=labels), config=dict), Path("."), {}, None, None, {})
    assert (kept["train_prevalence"] == 0).all()


# recipes, words

def test_schedules_by_hand():
    np.testing.assert_allclose([poly(p, 1., 10) for p in (0, .05, .0999, .1, .56, .999)], [1, 1, 1, .9, .5, .1])
    np.testing.assert_allclose([poly(p, .9) for p in (0, .5, 1)], [1, .5**.9, 0])
    np.testing.assert_allclose([hold_then_linear(p, .6) for p in (0, .5, .6, .8, 1)], [1, 1, 1, .5, 0])
    cosine = lambda a, b, p: a + (b - a)*(1 - np.cos(np.pi*p))/2
    np.testing.assert_allclose([one_cycle(p) for p in (0, .125, .25, .625, 1)], [.04, cosine(.04, 1, .5), 1, cosine(1, 1e-5, .5), 1e-5], atol=1e-9)


def test_lengths_by_hand():
    assert fine_tuning(Recipe(epochs=6, lr=4e-3)) == dict(loss="balanced", epochs=2, iterations=None, lr=pytest.approx(4e-4))
    assert (Recipe(epochs=5).longer(1.5).epochs, Recipe(iterations=90).longer(.331).iterations, Recipe(epochs=1).longer(.1).epochs) == (8, 30, 1)


def test_words_about_seeds_people_and_cost():
    assert between_seeds("AP", [.1, .3]) == {"AP ± seeds": "14.14", "AP range": "10.00 to 30.00"}
    y, who = np.tile([[0.], [1]], (20, 1)), np.arange(40)//5
    r = SimpleNamespace(predictions=lambda: (y, y, np.ones_like(y)), clusters=who, identity=who, vocab=AttributeVocab("one", ("a",)))
    assert about_labels(r) == ["The test part shows 8 people: intervals over so few say little."]
    cost = dict(parameters=1_200_000, multiply_adds=2_500_000, training_seconds=61.4, train_images_per_second=300.,
                predict_images_per_second=900.2, peak_memory_mib=512., hardware="2 CPU threads")
    row = cost_row([SimpleNamespace(done=dict(cost=cost, precision="float32"))])
    assert row == {"parameters": "1,200,000", "multiply-adds (M)": "2.5", "training seconds": "61", "training images/s": "300",
                   "inference images/s": "900", "peak memory MiB": "512", "precision": "float32", "hardware": "2 CPU threads"}


# models

def test_parsing_hears_the_attributes_and_every_map_is_stretched_by_itself():
    torch.manual_seed(0); net = SANet(backbone("small", .25), 3, 4).eval()
    for conv in (net.sa.phi_a, net.sa.phi_s): nn.init.normal_(conv.weight)
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64); xa, xs = net.features(x); a0, s0 = net.sa.first(xa, xs)
        regions = s0 + net.sa.phi_a(net.sa.bn_a(a0)).log_softmax(1)
        torch.testing.assert_close(net.parse(x), F.interpolate(regions, (64, 64), mode="bilinear", align_corners=False))
        masks = net.sa.phi_s(net.sa.bn_s(s0)).flatten(2).softmax(2).view(2, 3, *s0.shape[-2:])
        torch.testing.assert_close(net.where(x), masks/masks.amax((2, 3), keepdim=True))


def test_heads_of_an_average_stand_in_one_group():
    deep, flat = AvgPool(backbone("small", .25), 3), nn.Linear(3, 3)
    flat.param_groups = lambda: [[flat.weight], [flat.bias]]
    groups = Averaged([deep, flat]).param_groups()
    assert len(groups) == len(deep.param_groups())
    assert all(any(p is q for q in groups[k]) for p, k in ((flat.bias, -1), (flat.weight, -2), (deep.head.weight, -1)))


def test_a_small_region_counts_as_it_is():
    x = torch.full((1, 2, 2, 2), 3., dtype=torch.float64); masks = torch.full((1, 1, 2, 2), .1, dtype=torch.float64)
    torch.testing.assert_close(region_vectors(x, masks, "mask"), torch.full((1, 1, 2), 3.*.4/(.4 + 1e-6), dtype=torch.float64), rtol=1e-6, atol=0)


def test_blan_counts_every_picture_of_a_batch_and_gates_hear_encoder_then_decoder():
    from symbiosis_nb.models.ladder import BLAN
    torch.manual_seed(0); net = BLAN(3, backbone("small", .25), (64, 64)).eval()
    logits, y = torch.tensor([[1., -2, 3], [0, 1, 2]]), torch.tensor([[1., 0, nan], [nan, nan, nan]])
    torch.testing.assert_close(net.loss(logits, y), (F.softplus(torch.tensor(-1.)) + F.softplus(torch.tensor(-2.)))/2)   # of two pictures
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64); enc, dec = net.ladder(x)
        for m, e, d, gate in zip(net.meet, enc, dec, net.gates(x)):
            joined = m.join(torch.cat([e, d], 1))
            torch.testing.assert_close(gate, m.spatial(joined*m.channel(joined)))


def test_native_pictures_serve_where_they_are_not_smaller_side_by_side():
    from symbiosis_nb.needs.base import uses_native
    from symbiosis_nb.recipes import Profile
    need = lambda size: SimpleNamespace(stored=lambda j: size, native_box=lambda j: (0, 0, 150, 100))
    asks = lambda size: uses_native(SimpleNamespace(profile=Profile("paper", size), table=SimpleNamespace(frame="aligned", name="CelebA"), need=need(size)))
    assert asks((100, 150)) and not asks((150, 100)) and not asks((99, 150))     # height, width; of a box 150 wide and 100 high

def test_a_resumed_run_has_waited(tmp_path, monkeypatch):
    from helpers import picture_table, stopped_after
    from symbiosis_nb.runs import run
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))
    table, how = picture_table(tmp_path/"pictures"), dict(precision="float32", epochs=30, patience=2)
    whole = run("avg_pool", table, "smoke", out=tmp_path/"a", **how)
    assert len(whole.log) < 30
    with stopped_after(monkeypatch, len(whole.log) - 2): run("avg_pool", table, "smoke", out=tmp_path/"b", **how)   # one epoch of the two is waited
    again = run("avg_pool", table, "smoke", out=tmp_path/"b", **how)
    assert again.news.startswith("resumed") and len(again.log) == len(whole.log)
