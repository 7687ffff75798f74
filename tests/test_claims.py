"Claims by their ids: means against a bootstrap by hand, orders as wholes, margins by metric, the list covered to the last row, old reports read"
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from symbiosis_nb import claims, metrics, plot, published, stats
from symbiosis_nb.claims import (AS_EQUAL, NEEDS, NOT_TESTED, Ledger, Scored, cannot_ask, claims_across, coverage, judge, kept_difference, kept_ledger, ledger_counts, order_of,
                                 run_differs)
from helpers import picture_table
from symbiosis_nb.core import DataError
from symbiosis_nb.jobs import departures, make_job
from symbiosis_nb.kept import kept_runs
from symbiosis_nb.methods import PSE_SE, get_method
from symbiosis_nb.recipes import fine_tuning
from symbiosis_nb.claims import tested_in as notebooks_that_test
from symbiosis_nb.stats import Mean
from symbiosis_nb.vocab import CELEBA

ROOT = Path(__file__).parents[1]
NAMES = ("one", "two", "three", "four")


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    y, known, who = (rng.random((120, 4)) < .4).astype(float), rng.random((120, 4)) < .9, rng.integers(0, 40, 120)
    return {(n, s): (rng.normal(size=y.shape) + g*(2*y - 1), y, known) for s in (0, 1) for n, g in dict(a=1., b=.3).items()}, who


def fixed(value, spread=.001, seeds=(0,)):
    "A mean with a known value and deviation"
    rng = np.random.default_rng(abs(hash((value, spread))) % 2**32)
    return Mean({s: (value, value + spread*rng.normal(size=1000)) for s in seeds})


@pytest.mark.parametrize("metric, f", [("AP", metrics.average_precision), ("accuracy", metrics.accuracy), ("balanced_accuracy", metrics.balanced_accuracy)])
def test_difference_of_two_groups_by_hand(case, metric, f):
    predictions, who = case
    scored = Scored(predictions, NAMES, who, replicates=40)
    first, rest = (scored(metric, part) for part in (["one", "three"], ["two", "four"]))
    gap = (first["a"] - first["b"]) - (rest["a"] - rest["b"])
    weights = stats.cluster_weights(who, 120, 40)
    assert all(len(set(w[who == p])) == 1 for w in weights[:5] for p in set(who))   # people are drawn whole
    for seed in (0, 1):
        each = {n: [f(*predictions[n, seed], weight=w[None])[0] for w in weights] for n in "ab"}
        gain = np.array(each["a"]) - np.array(each["b"])
        np.testing.assert_allclose(gap.by_seed[seed][1], gain[:, [0, 2]].mean(1) - gain[:, [1, 3]].mean(1))
        plain = f(*predictions["a", seed]) - f(*predictions["b", seed])
        assert gap.by_seed[seed][0] == pytest.approx(plain[[0, 2]].mean() - plain[[1, 3]].mean())
    assert gap.summary()["seeds"] == 2 and gap.summary()["difference"] == pytest.approx(np.mean([v for v, _ in gap.by_seed.values()]))


@pytest.mark.parametrize("metric", stats.INSTANCE)
def test_instance_scores_of_repeated_images(case, metric):
    "A replicate is the score of the images that it draws, each as often as it draws them"
    predictions, who = case
    scored = Scored(predictions, NAMES, who, replicates=5)
    found = scored(metric)["a"].by_seed[0]
    plain = lambda parts: metrics.instance_scores(*parts)[metric]
    assert found[0] == pytest.approx(plain(predictions["a", 0]))
    for w, value in zip(scored.weights, found[1]): assert value == pytest.approx(plain([p.repeat(w, 0) for p in predictions["a", 0]]))


def test_two_data_sets_are_drawn_apart(case):
    predictions, who = case
    same, other = (Scored(predictions, NAMES, who, draw=d, replicates=300)("accuracy") for d in (0, 1))
    a, b = (m["a"].by_seed[0][1] for m in (same, other))
    assert abs(np.corrcoef(a, b)[0, 1]) < .2
    twice = (same["a"] - other["a"]).summary()
    assert twice["difference"] == 0 and twice["low"] < 0 < twice["high"]   # paired, it would be exactly zero


def test_a_single_pair_is_judged_as_stats_does(case):
    predictions, who = case
    of = Scored(predictions, NAMES, who)("accuracy")
    verdict = lambda mean, kind: judge([("", mean, kind)], "accuracy")["verdict"]
    assert [verdict(of["a"] - of["b"], "greater"), verdict(of["b"] - of["a"], "greater"), verdict(of["a"] - of["a"], "about equal")] == ["holds", "does not hold", "holds"]
    with pytest.raises(ValueError, match="no seed in common"): of["a"] - Mean({5: of["a"].by_seed[0]})


def test_equal_means_nearer_in_accuracy_than_in_average_precision():
    "Whole papers differ by .3 points of accuracy: what counts as equal must be less"
    gap = [("a - b", fixed(.003), "about equal")]
    assert judge(gap, "accuracy")["verdict"].startswith("cannot tell") or judge(gap, "accuracy")["verdict"] == "does not hold"
    assert judge([("a - b", fixed(.003, 1e-5), "about equal")], "accuracy")["verdict"] == "does not hold"
    assert judge([("a - b", fixed(.003, 1e-5), "about equal")], "AP")["verdict"] == "holds"
    assert set(published.claims(kind="about equal").metric) | set(published.claims(kind="not better").metric) <= set(stats.MARGINS)


def test_an_order_is_one_claim():
    rising = [("a > b", fixed(.02), "greater"), ("b > c", fixed(.03), "greater")]
    assert judge(rising, "AP")["verdict"] == "holds" and judge(rising, "AP")["together"] == "100%"
    assert judge([*rising, ("c > d", fixed(-.02), "greater")], "AP")["verdict"] == "does not hold"
    unsure = judge([*rising, ("c > d", fixed(.002, .004), "greater")], "AP")
    assert unsure["verdict"] == "cannot tell" and unsure["difference"] == "+0.20", "the row shows the weakest part"
    assert 50 < int(unsure["together"][:-1]) < 90


def test_parts_that_hold_alone_need_not_hold_together():
    "A part whose own interval just misses 0 does not clear it when twenty parts must hold at once"
    parts = [(f"part {k}", fixed(.0022 + 1e-6*k), "greater") for k in range(20)]
    assert judge(parts[:1], "AP")["verdict"] == "holds" and judge(parts, "AP")["verdict"] == "cannot tell"


def test_a_measure_without_a_margin_can_be_greater_only():
    "Qualitative claims have measures of their own: no margin says what would be equal there"
    assert judge([("a - b", fixed(.02), "greater"), ("c - d", fixed(.03), "greater")], "qualitative")["verdict"] == "holds"
    with pytest.raises(ValueError, match="margin"): judge([("a - b", fixed(.02), "about equal")], "qualitative")


def test_orders_are_those_of_the_list():
    listed = published.claims(kind="ranking")
    for id, claim in listed.iterrows():
        pairs = order_of(claim)
        assert len(pairs) == len(re.findall(r" [>=] ", f" {claim['second']} ")) + (not claim["second"].startswith("="))
        assert all(a and b and a != b for a, b, _ in pairs)
    for id, (a, b) in AS_EQUAL.items(): assert (a, b, "about equal") in order_of(listed.loc[id]) and "equal" in listed.loc[id].note


def test_scopes_are_attributes():
    for claim in published.claims().query("kind != 'pattern'").itertuples():
        if claim.scope in ("all attributes", "all regions") or claim.dataset == "WIDER": continue
        assert set(claim.scope.split()) <= set(CELEBA.names), claim.Index


def test_every_claim_is_tested_or_says_why_not():
    tested, listed = notebooks_that_test(ROOT/"nbs"), set(published.claims().index)
    assert len(listed) == 137 and set(tested) <= listed, set(tested) - listed
    assert not set(tested) & set(NOT_TESTED), "tested, and said not to be"
    assert set(tested) | set(NOT_TESTED) == listed, listed - set(tested) - set(NOT_TESTED)
    assert all(len(reason) > 20 for reason in NOT_TESTED.values()) and set(NEEDS) <= set(tested)
    table = coverage(kept_ledger(ROOT/"reports"), tested)
    assert len(table) == 137 and ((table.tested_in != "") ^ (table.why_not != "")).all()


def test_one_run_for_two_names_answers_nothing(case):
    predictions, who = case
    twin = Scored({("inception", 0): predictions["a", 0], ("avg_pool", 0): predictions["a", 0], ("sa", 0): predictions["b", 0]}, NAMES, who)
    pair = lambda id: order_of(published.claims().loc[id])
    assert cannot_ask(pair("symbiosis-21"), twin) == "one run serves inception and avg_pool" and cannot_ask(pair("symbiosis-19"), twin) == ""
    ledger = Ledger("symbiosis", "nothing")
    assert len(ledger.test("symbiosis-21 symbiosis-06", twin)) == 0 == len(ledger.rows)


def test_a_row_says_what_the_run_did_differently():
    profile = dict(name="demo", backbone="small", weights=None, size=(80, 64), recipe=dict(epochs=6))
    run = SimpleNamespace(method="ssp", config=dict(method="ssp", frame="aligned", data="CelebA (aligned)", profile=profile))
    said = lambda id, **config: run_differs(published.claims().loc[id], [SimpleNamespace(method="ssp", config={**run.config, **config})])
    assert "aligned pictures" in said("symbiosis-03") and "pictures" not in said("symbiosis-06")
    assert said("symbiosis-06") == "trunk small in place of vgg_like; profile demo: 6 epochs at 80x64"


def as_run(method, table, settings, asked="", **overrides):
    "What a claim asks of a finished run: its method and config"
    return SimpleNamespace(method=asked or method, config=make_job(method, table, settings, overrides=overrides).config())


def test_a_shortened_paper_profile_is_not_the_papers(tmp_path):
    table = picture_table(tmp_path/"pictures"); table.name, table.frame = "CelebA (aligned)", "aligned"
    said = lambda *runs: run_differs(published.claims().loc["symbiosis-06"], runs)
    assert said(as_run("ssp", table, "paper"), as_run("avg_pool", table, "paper")) == ""
    assert said(as_run("ssp", table, "paper epochs=6 size=64x64"), as_run("avg_pool", table, "paper epochs=6 size=64x64")) == (
        "size 64x64 in place of 218x178; length 6 epochs in place of 101730 iterations")
    assert said(as_run("ssp", table, "paper", limit=40)) == "limit 40 in place of None"
    recipe = get_method("ssp").recipe
    assert said(as_run("ssp", table, "paper", **fine_tuning(recipe))) == ""   # as claims about balanced accuracy ask


@pytest.mark.parametrize("method, data, trunk, settings", [
    ("pse_b", "CelebA (aligned)", "se_resnet50", {k: v for k, v in PSE_SE.items()}), ("dual_path", "LFWA", "resnet18", {}),
    ("pse_a", "CelebA (aligned)", "alexnet_bn", dict(weights="scratch"))])
def test_a_paper_with_two_trunks_has_both(tmp_path, method, data, trunk, settings):
    table = picture_table(tmp_path/"pictures"); table.name, table.frame = data, "aligned"
    r = as_run(method, table, "paper", **settings)
    assert r.config["profile"]["backbone"] == trunk
    assert "trunk" not in run_differs(published.claims().loc["pse-03"], [r]) and not departures(r.config, get_method(method).on(data).having(trunk))
    assert "trunk small in place of" in run_differs(published.claims().loc["pse-03"], [as_run(method, table, "demo")])


def test_own_comparisons_are_no_claims(tmp_path, case):
    predictions, who = case
    of = Scored(predictions, NAMES, who)("accuracy")
    ledger = Ledger("blan", "a set")
    ledger.own({"accuracy": [("ours over theirs", of["a"] - of["b"])]})
    folder = ledger.write(tmp_path/"blan_sample")
    assert not ledger.rows and [p.name for p in folder.iterdir()] == ["own_comparisons.csv"] and not len(kept_ledger(tmp_path))


def test_two_reports_of_one_claim_count_once(tmp_path):
    ledger = Ledger("pse", "a set")
    ledger.pattern("pse-14", [("gain − gain", fixed(.02))]); ledger.fact("pse-08", True, "more", "more")
    for name in ("pse_sample", "celeba_sample"): ledger.write(tmp_path/name)
    kept = kept_ledger(tmp_path)
    assert sorted(kept.id) == ["pse-08", "pse-08", "pse-14", "pse-14"] and ledger_counts(kept).loc["pse", "sample"] == "2 hold, 0 do not, 0 open"


def test_verdicts_of_reports_stand_side_by_side(tmp_path):
    "Only what one of the asked reports tests; the first of a column's reports counts"
    ledgers = [Ledger("pse", "a set") for _ in range(3)]
    ledgers[0].pattern("pse-14", [("gain − gain", fixed(.02))]); ledgers[1].pattern("pse-14", [("gain − gain", fixed(-.03))])
    ledgers[1].fact("pse-08", True, "more", "more"); ledgers[2].fact("pse-09", True, "more", "more")
    for name, ledger in zip(("a_sample", "b_sample", "c_sample"), ledgers): ledger.write(tmp_path/name)
    kept = kept_ledger(tmp_path)
    across = claims_across(kept, {"one": ["a_sample"], "other": ["b_sample", "a_sample"]}).set_index("id")
    assert across.loc["pse-14", ["one", "other"]].tolist() == ["+2.00 holds", "-3.00 does not hold"]
    assert across.loc["pse-08", ["one", "other"]].tolist() == ["", "holds"] and "pse-09" not in across.index
    with pytest.raises(ValueError, match="d_sample"): claims_across(kept, {"nobody": ["d_sample"]})


def test_the_reports_of_this_repository_are_read():
    kept = kept_ledger(ROOT/"reports")
    assert len(kept) and not kept[["claim", "paper", "metric", "verdict", "measured_on"]].eq("").any(axis=None)
    assert set(ledger_counts(kept).index) <= set(published.PAPERS)


def test_a_row_says_what_no_setting_tells(tmp_path):
    "Where two paths meet, whose pictures are not enlarged, whose fusion hardly learns: beside every verdict and in the card's notes"
    table, claim = picture_table(tmp_path/"pictures"), published.claims().loc["symbiosis-06"]
    def says(method, data, profile="demo", options=None, **settings):
        t = replace(table, name=data, frame="aligned")
        return run_differs(claim, [SimpleNamespace(method=method, config=make_job(method, t, profile, options=options, overrides=settings).config())])
    assert "where the trunk's stages end" in says("dual_path", "LFWA") and "stages end" not in says("dual_path", "LFWA", "paper")
    assert "stages end" not in says("dual_path", "LFWA", backbone="resnet18", weights="scratch")
    assert all("as they are" in says(m, "LFWA", p, weights="scratch") for m in ("dmtl", "pse_b") for p in ("demo", "paper"))
    assert "as they are" not in says("pse_b", "LFWA, enlarged 12-fold") + says("pse_b", "CelebA (aligned)")
    hardly = says("blan", "CelebA (aligned)", iterations=2_346, options=dict(fusion_lr=1e-4))
    assert "in 2,346" in hardly and "little more than their mean" in hardly
    assert "their mean" not in says("blan", "CelebA (aligned)", iterations=50_000, options=dict(fusion_lr=1e-4))
    assert "their mean" not in says("blan", "CelebA (aligned)", iterations=2_346, options=dict(fusion_lr=1e-2))
    assert "their mean" not in says("blan", "CelebA (aligned)", iterations=2_346, options=dict(iterations=2_346))   # its rate is scaled
    assert "their mean" not in says("blan", "CelebA (aligned)", iterations=2_346, options=dict(features="encoder", lmim=False, fusion=False))


def test_a_length_has_the_unit_that_it_was_given(tmp_path):
    table = picture_table(tmp_path/"pictures"); table.name, table.frame = "CelebA (aligned)", "aligned"
    said = lambda **settings: run_differs(published.claims().loc["symbiosis-06"], [as_run("ssp", table, "demo", **settings)])
    assert "demo: 300 iterations at 80x64" in said(iterations=300) and "demo: 6 epochs at 80x64" in said()


def test_a_row_that_nobody_registered_says_nothing_of_a_paper(tmp_path):
    "Its neighbour's departures are its neighbour's"
    table = picture_table(tmp_path/"pictures"); table.name, table.frame = "CelebA (aligned)", "aligned"
    mine = as_run("avg_pool", table, "paper epochs=6"); mine.method = "mine"; mine.config["method"] = "mine"
    said = run_differs(published.claims().loc["symbiosis-06"], [mine, as_run("ssp", table, "paper")])
    assert "length" not in said and "vgg_like" not in said


def test_two_kept_reports_against_each_other():
    "Points, paired over the people of the test part; a report against itself is nothing"
    reports = ROOT/"reports"
    shown = kept_difference(reports/"lfwa_short_official", reports/"lfwa_small_official")
    of = [{r.config["seed"]: metrics.accuracy(*r.predictions()).mean() for r in kept_runs(reports/n) if r.method == "avg_pool"}
          for n in ("lfwa_short_official", "lfwa_small_official")]
    both = of[0].keys() & of[1].keys()   # seeds
    gap = 100*np.mean([of[0][s] - of[1][s] for s in both])
    assert both == {0, 1} and len(of[0]) == 3
    assert f"| Avg. pooling | {gap:+.2f} [" in shown and "Inception" not in shown
    assert "| SSP | +0.00 [0.00, 0.00] | +0.00 [0.00, 0.00] |" in kept_difference(reports/"lfwa_short_official", reports/"lfwa_short_official")


def test_one_run_under_two_names_is_not_compared(case):
    "Whichever seed it has"
    predictions, who = case
    shared = {("a", 0): predictions["a", 0], ("a", 1): predictions["a", 1], ("b", 1): predictions["a", 1]}
    pair = [("a", "b", "greater")]
    assert cannot_ask(pair, Scored(shared, NAMES, who)) == "one run serves a and b" and not cannot_ask(pair, Scored(predictions, NAMES, who))


def test_where_a_difference_stands_is_asked_before_it_is_rounded():
    below = Mean({0: (-.0011, np.linspace(-.00222, .00002, 1001))})   # 95 % of it: [-0.216, -0.004] in points
    row = Ledger("all", "x").own({"accuracy": [("a − b", below)]}).loc["a − b"]
    assert row.verdict == "below" and row.interval.endswith(" -0.00]")
    bars = plot.difference_bars(pd.DataFrame(dict(difference=["-0.11", "0.20", "0.00"], low=["-0.21", "-0.10", "0.00"], high=["-0.00", "0.50", "0.00"]), index=list("abc")))
    assert [line.get_color() for line in bars.axes[0].lines[1::2]] == ["black", "0.55", "0.55"]


def test_rows_that_differ_in_more_are_named_and_left_out(monkeypatch):
    "Epochs are compared; of what other code trained, or at another size, nothing is said"
    kept = {n: kept_runs(ROOT/"reports"/n) for n in ("lfwa_official", "lfwa_short_official")}
    for r in kept["lfwa_short_official"]: r.config |= dict(code="another") if r.method == "g2s_1" else {}
    monkeypatch.setattr(claims, "kept_runs", lambda folder: [r for r in kept[folder] if r.method in ("ssp", "g2s_1", "avg_pool")])
    table, _, rest = kept_difference(*kept, only=("recipe epochs",)).partition("Not compared, since more differs: ")
    assert "| SSP |" in table and "G2S" not in table and "G2S, step 1 (code)" in rest
    with pytest.raises(DataError, match=r"no rows to compare: more differs in Avg\. pooling \(recipe epochs\)"): kept_difference(*kept, only=("data",))
    kept["lfwa_official"] = [r for r in kept["lfwa_official"] if r.method == "sa"]; kept["lfwa_short_official"] = kept["lfwa_short_official"][:3]
    monkeypatch.setattr(claims, "kept_runs", kept.get)
    with pytest.raises(DataError, match="no method is in both"): kept_difference(*kept)


def test_what_no_picture_decides_is_cost(tmp_path):
    "Parameters in a report of faces; a claim that excludes plain losses is not read from runs with one"
    rows = [dict(id="pse-08", data="counted", differs=""), dict(id="pse-01", data="CelebA (aligned)", differs="trunk small in place of alexnet_bn"),
            dict(id="symbiosis-08", data="CelebA (aligned)", differs="trained with the plain loss, the claim is about balanced fine-tuning")]
    (tmp_path/"pse_46k").mkdir(); pd.DataFrame(rows).to_csv(tmp_path/"pse_46k"/"claims.csv")
    assert kept_ledger(tmp_path).set_index("id").measured_on.to_dict() == {"pse-08": "cost", "pse-01": "46k, small"}
