"What once gave wrong numbers without a word: each fault as it was found, and what is right."
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers import picture_table
from symbiosis_nb.callbacks import Selection
from symbiosis_nb.claims import Ledger, Mean, judge, kept_difference
from symbiosis_nb.code import code_digest, source_digest
from symbiosis_nb.combine import gather_columns, mean_arrays
from symbiosis_nb.core import DataError, file_said, told_apart, write_json
from symbiosis_nb.data.parts import held_out
from symbiosis_nb.data.protocols import cross, fewer, resplit
from symbiosis_nb.jobs import make_job, resolve, weights_for
from symbiosis_nb.kept import Run, check_pictures, check_rows, keep, keep_small, kept_runs, named_again, nameless
from symbiosis_nb.localize import last_maps, unseen
from symbiosis_nb.methods import METHODS, family, get_method
from symbiosis_nb.readings import locality, masks_seen, per_classifier
from symbiosis_nb.recipes import make_profile
from symbiosis_nb.report import write_frames
from symbiosis_nb.runs import run
from symbiosis_nb.stats import cluster_weights

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
MADE_UP = pd.DataFrame(dict(AP=[.5])), pd.DataFrame(dict(epoch=[0], train_loss=[.7]))


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
