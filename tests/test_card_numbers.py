"""A card and the claims on it, of runs whose answers are made up: every number beside one worked out here.

Each test was written because a plausible slip (the last weights for the selected, a sign, a seed too many, pictures for people) changed what a
card says, and nothing noticed."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as skm

from symbiosis_nb import claims as C, metrics as M, published, stats
from symbiosis_nb.claims import Ledger, Scored, judge, kept_ledger, ledger_counts, scored_card
from symbiosis_nb.core import DataError
from symbiosis_nb.data.tables import AttributeTable
from symbiosis_nb.kept import Run, keep, score
from symbiosis_nb import page  # noqa: what a card says of itself
from symbiosis_nb.report import Card
from symbiosis_nb.vocab import CELEBA, AttributeVocab
from symbiosis_nb.stats import Mean

nan = np.nan


# the card, of runs that nobody trained

NAMES = ("beard", "shaved", "hat")

VOCAB = AttributeVocab("mine", NAMES, contradictions=((("beard", 1), ("shaved", 1)),))
PROFILE = dict(name="demo", size=[80, 64], backbone="small", width=1., weights=None, recipe=dict(lr=.004, epochs=6, augment=dict(flip=.5)), augment=True)


N = 120


def drawn_labels(known=1., seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random((N, 3)) < .4).astype(float)
    return np.where(rng.random((N, 3)) < known, y, nan)


def answers(y, strength, seed):
    rng = np.random.default_rng(seed)
    return np.nan_to_num(y, nan=.5)*strength - strength/2 + rng.normal(size=y.shape)


def card_of(folder, rows, y, who=None, valid=None, done=None, extra=None, **card):
    "rows: (method, seed) -> (selected, last) logits of the test part"
    runs = []
    for (method, seed), (selected, last) in rows.items():
        arrays = dict(test_targets=y, test_selected=selected, test_last=last, test_identity=np.arange(N)//4 if who is None else who, train_prevalence=np.full(3, .4),
                      test_names=np.array([f"{i}.jpg" for i in range(N)])) | (valid or {}) | (extra or {}).get((method, seed), {})
        config = dict(method=method, seed=seed, vocab="mine", attributes=list(NAMES), data="a set", data_digest="0", frame="aligned",
                      counts=dict(train=10, valid=N, test=N),
                      profile=PROFILE, parsing=dict(name="p", regions=["background", "hair"]))
        keep(folder/f"{method}-{seed}", config, dict(selected_epoch=4) | (done or {}).get((method, seed), {}), score(arrays, VOCAB),
             pd.DataFrame(dict(epoch=[0])), predictions=arrays)
        runs.append(Run(folder/f"{method}-{seed}"))
    table = AttributeTable("a set", VOCAB, [f"{i}.jpg" for i in range(N)], np.nan_to_num(y), ~np.isnan(y), ["test"]*N, frame="aligned")
    return Card(runs, table, **{"replicates": 200, "baseline": "b", **card})

twice = lambda a: (a, a)
share = lambda s, y: np.nanmean(np.where(np.isnan(y), nan, (s > 0) == (y == 1)))   # every label is known: the mean of all is the mean of the attributes'

def test_selected_and_last_weights_each_say_their_own(tmp_path):
    y = drawn_labels(); selected, last = answers(y, 3, 1), answers(y, 1, 2)
    card = card_of(tmp_path, {("a", 0): (selected, last)}, y)
    shown = card.selection().loc["a"]
    assert shown["accuracy, selected"] == f"{100*share(selected, y):.2f}" != shown["accuracy, last"]
    assert shown["accuracy, last"] == f"{100*share(last, y):.2f}" and shown["selected epochs"] == "5"
    assert card.scores().loc["a", "accuracy"] == f"{100*share(selected, y):.2f}" and card.frames("last")["a"].accuracy.mean() == pytest.approx(share(last, y))


def test_tuned_and_fixed_thresholds_are_told_apart(tmp_path):
    y = drawn_labels(); s, v = answers(y, 4, 1) - 2, answers(y, 4, 2) - 2       # everybody is thought to have too little
    v_last = v + 4
    card = card_of(tmp_path, {("a", 0): (s, s + 4)}, y, valid=dict(valid_targets=y, valid_selected=v, valid_last=v_last))
    t = M.best_thresholds(v, y)
    theirs = dict(accuracy=skm.accuracy_score, balanced_accuracy=skm.balanced_accuracy_score)
    tuned = {n: np.mean([f((y[:, j] == 1), s[:, j] > t[n][j]) for j in range(3)]) for n, f in theirs.items()}
    shown = card.thresholds().loc["a"]
    assert shown["accuracy at 0.5"] == f"{100*share(s, y):.2f}" and shown["accuracy, tuned for it"] == f"{100*tuned['accuracy']:.2f}" != shown["accuracy at 0.5"]
    balanced = f"{100*tuned['balanced_accuracy']:.2f}"
    assert shown["balanced accuracy, tuned for it"] == card.balanced().loc["a", "tuned thresholds"] == balanced != shown["accuracy, tuned for it"]
    assert card.frames("last")["a"].accuracy_tuned.mean() > .9                       # by the thresholds of the last weights

def test_thresholds_come_from_the_validation_part(tmp_path):
    y, s = np.r_[np.zeros(50), np.ones(50)][:, None], np.linspace(-1, 1, 100)[:, None]
    one = AttributeVocab("one", ("a",))
    arrays = dict(test_targets=y, test_selected=s - .5, test_last=s + 5, valid_targets=y, valid_selected=s, valid_last=s + 5)
    assert score(arrays, one).accuracy_tuned.item() == pytest.approx(.75, abs=.011) and score(arrays, one, "last").accuracy_tuned.item() == 1.


def test_a_difference_is_of_the_seeds_in_common_and_has_its_sign(tmp_path):
    y = drawn_labels()
    rows = {("a", 0): twice(answers(y, 3, 1)), ("a", 1): twice(answers(y, .2, 2)), ("b", 0): twice(answers(y, 1.5, 3))}
    card = card_of(tmp_path, rows, y)
    gap = share(rows["a", 0][0], y) - share(rows["b", 0][0], y); d = card.difference("a", "b", "accuracy")
    assert d["difference"] == pytest.approx(gap) and gap > 0 and d["low"] < gap < d["high"] and d["seeds"] == 1
    assert card.comparisons("AP").loc["a − b", "difference in accuracy"] == f"{100*gap:+.2f}"
    card = card_of(tmp_path/"one seed each", {k: v for k, v in rows.items() if k[1] == 0}, y)
    value, low, high = card.mean_with_interval("b", "AP"); _, drawn = card.mean("b", "AP").by_seed[0]
    np.testing.assert_allclose([low, high], np.percentile(drawn, [2.5, 97.5]) - drawn.mean() + value)   # free of the bootstrap's bias

def test_the_accuracy_test_swaps_people_and_takes_every_seed(tmp_path):
    y = drawn_labels(); right, wrong = 2*y - 1, 1 - 2*y
    p = lambda rows, who: card_of(tmp_path/str(len(list(tmp_path.iterdir()))), rows, y, who).comparisons().loc["a − b", "p (accuracy)"]
    assert float(p({("a", 0): twice(right), ("b", 0): twice(wrong)}, np.arange(N)//60)) == pytest.approx(.5, abs=.06)   # two people
    assert p({("a", 0): twice(right), ("b", 0): twice(wrong), ("a", 1): twice(wrong), ("b", 1): twice(right)}, None) == "1.000"   # even

def test_rows_are_ordered_and_the_leader_is_the_best(tmp_path):
    y = drawn_labels()
    card = card_of(tmp_path, {(m, 0): twice(answers(y, g, k)) for k, (m, g) in enumerate(dict(b=1., a=.2, c=6., d=2.).items())}, y)
    assert card.ranked == ["c", "d", "b", "a"] and card.comparisons().index.tolist() == ["c − b", "d − b", "a − b"]
    assert card.leaders().index[0] == "c − d" and card.leaders().loc["c − a", "standing"] == "ahead" and card.leaders().difference.str.startswith("+").all()


def test_worse_attributes_are_marked_too(tmp_path):
    y = drawn_labels(); good, bad = answers(y, 6, 1), answers(y, .1, 2)
    mixed = np.c_[good[:, 0], bad[:, 1], good[:, 2]]; other = np.c_[bad[:, 0], good[:, 1], good[:, 2] + 1e-9]
    gains, sure = card_of(tmp_path, {("a", 0): twice(mixed), ("b", 0): twice(other)}, y).attribute_differences("accuracy")
    assert sure.a.tolist() == [True, True, False] and gains.a.iloc[0] > 20 > -20 > gains.a.iloc[1]
    assert gains.a.iloc[0] == pytest.approx(100*(share(mixed[:, 0], y[:, 0]) - share(other[:, 0], y[:, 0])), abs=.006)


@pytest.mark.parametrize("value, inside, gap", [(91.04, "yes", "-1.04"), (91.08, "no", "-1.08"), (88.96, "yes", "+1.04"), (88.9, "no", "+1.10")])
def test_a_printed_number_stands_for_what_is_rounded_to_it(value, inside, gap):
    g = SimpleNamespace(paper="blan", metric="accuracy", value=value, digits=1, table="3", variant="", misprint="")
    here = SimpleNamespace(fine_tuned=(), without_celeba=lambda *a: False, mean=lambda *a: SimpleNamespace(value=.9, interval=(.89, .91)), title=str, kind="official")
    cell = Card.printed_cell(here, "blan", g)
    assert (cell["inside"], cell["difference"], cell["interval"]) == (inside, gap, "[89.00, 91.00]")


def test_unknown_labels_are_left_out_everywhere(tmp_path):
    y = drawn_labels(.7); known = ~np.isnan(y); s = answers(y, 2, 1)
    card = card_of(tmp_path, {("a", 0): twice(s)}, y)
    ap = lambda rows: 100*np.mean([skm.average_precision_score(np.nan_to_num(y[r, j]), s[r, j]) for j, r in enumerate(rows)])
    assert card.open_labels().loc["a", ["ignored", "negative"]].tolist() == [round(ap(known.T), 2), round(ap(np.ones((3, N), bool)), 2)]
    assert card.protocol().loc["unknown labels"].item().startswith(f"{100*(1 - known.mean()):.1f}%")
    says, true = (s > 0) & known, (y == 1); rows = true.any(1)
    precision = np.mean([(says & true)[i].sum()/max(says[i].sum(), 1) for i in np.flatnonzero(rows)])
    assert card.scores().loc["a", "precision"] == f"{100*precision:.2f}"
    both = known[:, 0] & known[:, 1]
    assert card.logic().labels.item() == pytest.approx(100*((y[:, 0] == 1) & (y[:, 1] == 1))[both].mean(), abs=.006)


def test_fine_tuned_runs_saw_the_same_pictures(tmp_path):
    y = drawn_labels(); fine = card_of(tmp_path/"fine", {("b", 0): twice(answers(y, 6, 2))}, y).runs
    fine[0].arrays = {k: v[::-1] if k.startswith("test") else v for k, v in fine[0].arrays.items()}
    card = card_of(tmp_path/"base", {("b", 0): twice(answers(y, 1, 1))}, y, fine_tuned=tuple(fine))
    with pytest.raises(DataError, match="not measured on the same pictures"): card.weights


def test_limits_of_a_row_without_a_common_seed(tmp_path):
    y = drawn_labels()
    card = card_of(tmp_path, {("b", 0): twice(answers(y, 1, 1)), ("a", 1): twice(answers(y, 2, 2))}, y)
    assert not any("would be missed" in line for line in card.limits())


def test_people_whom_nobody_knows_are_one_each(tmp_path):
    y = drawn_labels(); who = np.where(np.arange(N) < N//2, -1, 5)
    card = card_of(tmp_path, {("b", 0): twice(answers(y, 1, 1))}, y, who)
    assert card.protocol().loc["people in test"].item() == N//2 + 1 and f"of {N//2 + 1} people" in card.measured()


def test_the_largest_gap_is_the_limit(tmp_path):
    y = drawn_labels(); base = answers(y, 2, 1)
    rows = dict(b=base, a=base + .01*answers(y, 1, 2), c=answers(y, .1, 3))
    card = card_of(tmp_path, {(m, 0): twice(s) for m, s in rows.items()}, y)
    gaps = {m: 100*card.difference(m, "b")["smallest_gap"] for m in "ac"}
    assert gaps["c"] > 2*gaps["a"] and any(f"below about {gaps['c']:.2f} points" in l for l in card.limits())


def test_parsing_is_a_mean_over_seeds(tmp_path):
    y = drawn_labels(); s = {("a", k): twice(answers(y, 2, k)) for k in (0, 1)}
    card = card_of(tmp_path, s, y, done={("a", k): dict(parsing=dict(mean_IoU=.4 + .2*k)) for k in (0, 1)},
                   extra={("a", k): dict(parsing_confusions=np.array([[[8 - 4*k, 2 + 4*k], [0, 10]]])) for k in (0, 1)})
    assert card.parsing().loc["a", "mean IoU"] == "50.00" and card.parsing_regions().loc["background", "a, accuracy"] == 60


def test_instance_scores_are_drawn_over_seeds_too(tmp_path):
    y = drawn_labels(); rows = {("a", k): twice(answers(y, g, k)) for k, g in enumerate((9, .1))}
    value, low, high = card_of(tmp_path, rows, y).mean_with_interval("a", "F1")
    each = [M.instance_scores(s, y)["F1"] for s, _ in rows.values()]
    assert value == pytest.approx(np.mean(each)) and high - low > .9*(max(each) - min(each))   # both seeds the same one: a quarter of the replicates each

def test_the_fine_tuned_interval_is_its_own(tmp_path):
    y = drawn_labels(); fine = card_of(tmp_path/"fine", {("b", 0): twice(answers(y, 6, 2))}, y).runs
    card = card_of(tmp_path/"base", {("b", 0): twice(answers(y, 1, 1))}, y, fine_tuned=tuple(fine))
    cell = Card.printed_cell(card, "b", SimpleNamespace(paper="symbiosis", metric="balanced_accuracy", value=90., digits=2, table="5", variant="", misprint=""))
    ours = fine[0].scores.balanced_accuracy.mean(); drawn = stats.bootstrap_mean(M.balanced_accuracy, *fine[0].predictions(), card.weights)
    low, high = 100*(np.percentile(drawn, [2.5, 97.5]) - drawn.mean() + ours)
    assert (cell["ours"], cell["interval"]) == (f"{100*ours:.2f}", f"[{low:.2f}, {high:.2f}]")


# claims

def mean_of(value, spread=.001, seeds=(0,), off=0.): return Mean({s: (value, value + off + spread*np.linspace(-2, 2, 1001)) for s in seeds})


def test_together_is_a_share_of_moved_replicates_within_the_margin():
    assert judge([("a", mean_of(.01, .001, off=-.02), "greater")], "AP")["together"] == "100%"     # the bootstrap's bias does not count
    assert judge([("a", mean_of(0., .001), "not better")], "AP")["together"] == "100%"            # all within .005
    assert judge([("a", mean_of(0., .005), "about equal")], "AP")["together"] == "50%"            # half of -.01 to .01

def test_a_part_that_is_surely_better_does_not_agree():
    assert judge([("a", mean_of(.003, .0005), "not better")], "AP")["together"] == "0%"


def test_the_weakest_part_is_the_one_nearest_to_its_limit():
    low, high = mean_of(-.002, .0005, (0, 1)), mean_of(.001, .0005)
    told = judge([("a", low, "about equal"), ("b", high, "about equal")], "AP")
    assert told["difference"] == "-0.20" and told["seeds"] == 1
    under, near = mean_of(-.01, .001), mean_of(-.0022, .001)      # "not better" is open where it ends below the margin and begins above 0
    assert judge([("a", under, "not better"), ("b", near, "not better")], "AP")["difference"] == "-0.22"


def test_what_fails_fails_also_beside_what_is_not_defined():
    nobody = Mean({0: (nan, np.full(1001, nan))})
    assert judge([("a", mean_of(-.1), "greater"), ("b", nobody, "greater")], "AP")["verdict"] == "does not hold"
    assert judge([("a", mean_of(.1), "greater"), ("b", nobody, "greater")], "AP")["verdict"] == "cannot tell: not defined here: b"


def test_reports_that_disagree_count_twice_and_lfwa_is_official(tmp_path):
    for name, sign in (("pse_46k", 1), ("celeba_46k", -1)):
        ledger = Ledger("pse", "CelebA, a sample"); ledger.pattern("pse-14", [("gain − gain", mean_of(sign*.02))])
        ledger.fact("pse-08", True, "more", "more", data="LFWA, aligned"); ledger.write(tmp_path/name)
    kept = kept_ledger(tmp_path)
    assert dict(zip(kept.id, kept.measured_on)) == {"pse-14": "46k", "pse-08": "official"}
    assert ledger_counts(kept).loc["pse"].to_dict() == {"46k": "1 hold, 1 do not, 0 open", "official": "1 hold, 0 do not, 0 open"}


def test_verdicts_of_two_networks_are_two(tmp_path):
    for name, trunk in (("pse_46k", "small"), ("celeba_46k", "efficientnet_lite0")):
        ledger = Ledger("pse", "CelebA, a sample"); ledger.pattern("pse-14", [("gain − gain", mean_of(.02))], differs=f"trunk {trunk} in place of alexnet_bn"); ledger.write(tmp_path/name)
    assert sorted(kept_ledger(tmp_path).measured_on) == ["46k, pretrained", "46k, small"]


def test_two_cards_are_drawn_apart_and_fine_tuned_runs_answer_for_themselves(tmp_path):
    y = drawn_labels(); base = {("b", 0): twice(answers(y, 1, 1))}
    fine = card_of(tmp_path/"fine", {("b", 0): twice(answers(y, 4, 2))}, y).runs
    card = card_of(tmp_path/"base", base, y, fine_tuned=tuple(fine))
    one, other, tuned = scored_card(card), scored_card(card, draw=1), scored_card(card, fine_tuned=True)
    a, b, c = (s("accuracy")["b"].by_seed[0] for s in (one, other, tuned))
    assert abs(np.corrcoef(a[1], b[1])[0, 1]) < .3 and a[0] == b[0]
    assert c[0] == pytest.approx(share(fine[0].predictions()[0], y)) and abs(c[1].mean() - c[0]) < .02


def test_a_comparison_of_our_own_is_judged_by_its_kind():
    said = Ledger("pse", "a set").own({"AP": [("plain", mean_of(.001, .0002)), ("equal", mean_of(.001, .0002), "about equal")]}).verdict
    assert said.tolist() == ["above", "holds"]


def test_a_claim_of_one_attribute_is_asked_of_it():
    of_one = lambda c: c.kind == "greater" and set(c.scope.split()) <= set(CELEBA.names) and c.Index not in C.ALSO
    claim = next(filter(of_one, published.claims().itertuples()))
    rng = np.random.default_rng(0); y = (rng.random((200, 40)) < .5).astype(float); at = CELEBA.index(*claim.scope.split())
    good, bad = 1 - 2*y, 2*y - 1                                   # the first is wrong everywhere but on what the claim is about
    good[:, at] = 2*y[:, at] - 1; bad[:, at] = 1 - 2*y[:, at]
    scored = Scored({(claim.first, 0): (good, y, np.ones_like(y, bool)), (claim.second, 0): (bad, y, np.ones_like(y, bool))}, CELEBA.names, replicates=100)
    assert Ledger(claim.paper, "a set").test(claim.Index, scored).verdict.tolist() == ["holds"]
