"The result card says what was measured, on what, and how sure it is; nothing more."
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from helpers import picture_table
from symbiosis_nb import metrics, report, stats
from symbiosis_nb.core import DataError
from symbiosis_nb.data.sources import synthetic_root
from symbiosis_nb.data.synthetic import make_faces, make_parsing
from symbiosis_nb.kept import keep_small
from symbiosis_nb.methods import METHODS
from symbiosis_nb.page import write_html
from symbiosis_nb.published import golden
from symbiosis_nb.report import Card, data_kind, own_spelling, write_tables
from symbiosis_nb.runs import Run, run
from symbiosis_nb.wording import learnt_from


@pytest.fixture(scope="module")
def home(tmp_path_factory): return tmp_path_factory.mktemp("report")


def named(home, name="CelebA (aligned)", frame="aligned"):
    table = picture_table(home/"pictures")
    table.name, table.frame = name, frame
    return table


def tiny(home, methods=("avg_pool", "spp_net"), seeds=(0,), table=None, **settings):
    table = table or named(home)
    runs = [run(m, table, "smoke", seed=s, out=home/"runs", **{"limit": None, **settings}) for m in methods for s in seeds]
    return Card(runs, table, replicates=60)


@pytest.fixture(scope="module")
def card(home): return tiny(home)


@pytest.fixture(scope="module")
def seeded(home): return tiny(home, seeds=(0, 1))


def official(monkeypatch, table): monkeypatch.setitem(report.OFFICIAL, "CelebA", (len(table), table.counts()["test"]))


def test_kind_of_data_is_what_the_runs_saw(home, card, monkeypatch):
    table = named(home); official(monkeypatch, table)
    assert data_kind(table) == card.kind == "official"
    assert "difference" in card.printed()
    limited = tiny(home, limit=40)
    assert data_kind(limited.table) == "official" and limited.kind == "sample", "a limited run on official files is a sample"
    assert "difference" not in limited.printed() and report.SAYS["sample"] in limited.limits()
    shown = limited.protocol().iloc[:, 0]
    assert shown["kind"].startswith("sample") and shown["split"] == "train 40, valid 16, test 16"
    assert any("16 test images" in l for l in limited.limits())


def test_training_on_a_part_is_a_sample(home, monkeypatch):
    monkeypatch.setitem(report.OFFICIAL, "CelebA", (202_599, 16))
    assert tiny(home).kind == "sample", "the official test part alone does not make a run comparable"


def test_one_run_on_a_part_makes_the_card_a_sample(home, card, monkeypatch):
    official(monkeypatch, card.table)
    r = Run(card.runs[1].folder); r.config = {**r.config, "counts": {**r.config["counts"], "train": 40}}
    assert card.kind == "official" and Card([card.runs[0], r], card.table, 10).kind == "sample"


def test_missing_test_pictures_make_a_sample(home, card, monkeypatch):
    official(monkeypatch, card.table)
    r = Run(card.runs[0].folder)
    r.arrays = {k: v[:-1] if k.startswith("test_") else v for k, v in r.arrays.items()}
    assert Card([r], card.table, replicates=10).kind == "sample"


def test_printed_numbers_are_those_of_the_image_set(home, tmp_path):
    table = named(home, "CelebA (original)", "whole")
    c = tiny(home, table=table, methods=("avg_pool",))
    assert set(c.printed()["where"]) == {"symbiosis, Table 1, original"} != set(c.printed("aligned")["where"])
    for args, found in (((), "original"), (("aligned",), "aligned")):
        page = write_html(c, tmp_path/"r.html", variant=args[0] if args else None).read_text()
        assert f"symbiosis, Table 1, {found}" in page
        assert re.findall(r"Table 1, (\w+)", (write_tables(c, tmp_path/"t", *args)/"printed.csv").read_text())[0] == found


def test_each_score_has_its_own_threshold(card):
    rng = np.random.default_rng(0)
    y = rng.random((3000, 40)) < .05; s = rng.normal(size=y.shape) + 2*y - 3
    half = slice(0, 1500); other = slice(1500, 3000)
    frame = metrics.score_frame(s[other], y[other], np.ones_like(y)[other], card.table.vocab, metrics.best_thresholds(s[half], y[half]))
    assert frame.accuracy_tuned.mean() > frame.accuracy.mean() - .005
    assert frame.balanced_accuracy_tuned.mean() > frame.balanced_accuracy.mean() + .1
    assert list(card.thresholds())[:4] == ["accuracy at 0.5", "accuracy, tuned for it", "balanced accuracy at 0.5", "balanced accuracy, tuned for it"]


def test_intervals_say_what_they_cover(card, seeded, tmp_path):
    assert card.covers == "people, not seeds: there is one per method" and seeded.covers == "people and seeds (their spread is pooled over the rows with several; 1 degree of freedom: hardly known, and intervals may be too narrow)"
    one, two = (write_html(c, tmp_path/"r.html").read_text() for c in (card, seeded))
    assert "people and seeds" not in one and "people and seeds" in two
    mixed = Card([*seeded.runs[:2], seeded.runs[2]], seeded.table, 10)
    assert mixed.covers == seeded.covers
    assert "people and seeds" not in " ".join(card.limits())


def test_tests_use_every_seed(seeded, monkeypatch):
    used = []
    monkeypatch.setattr(stats, "mcnemar", lambda a, b, k: used.append(1) or pd.DataFrame(dict(only_a=np.full(40, 9*(-1)**len(used)), only_b=0, p_holm=.001)))
    row = seeded.comparisons().iloc[0]
    assert len(used) == 2 and row["attributes that differ"] == 0, "an attribute that differs one way on one seed and the other way on the next does not differ"
    with pytest.raises(ValueError, match="no seed in common"): Card([seeded.runs[0], seeded.runs[3]], seeded.table, 10).difference("avg_pool", "spp_net")


def test_a_seed_stands_once_in_a_row(seeded):
    "Two trainings of one method and seed would be taken for two seeds, and narrow the interval"
    first = seeded.runs[0]
    with pytest.raises(DataError, match=f"{first.method} is here twice with seed {first.config['seed']}"): Card([first, Run(first.folder)], seeded.table, 10)
    assert Card([first, Run(first.folder, "again")], seeded.table, 10).methods == [first.method, "again"]


def test_claims_are_judged_as_the_papers_make_them():
    verdicts = lambda low, high, margin=.01: [stats.verdict(low, high, kind, .02, margin).split(":")[0] for kind in ("greater", "not better", "about equal")]
    assert verdicts(-.03, -.02) == ["does not hold", "holds", "does not hold"]
    assert verdicts(-.004, .004) == ["cannot tell", "holds", "holds"]
    assert verdicts(.02, .03) == ["holds", "does not hold", "does not hold"]
    assert verdicts(-.02, .03) == ["cannot tell"]*3
    assert verdicts(-.004, .004, .002) == ["cannot tell"]*3, "what is equal depends on the metric's margin"
    assert re.fullmatch(r"cannot tell: \d+\.\d\d points could be resolved", stats.verdict(-.02, .03, "greater", .02))
    with pytest.raises(ValueError, match="margin"): stats.verdict(0, 1, "not better")


def test_what_was_taught_by_drawings_is_no_comparison(home, card, monkeypatch):
    "Official pictures with a synthetic parsing set, or started from synthetic weights, match and miss nothing"
    official(monkeypatch, card.table)
    for more in (dict(parsing=dict(name="synthetic parsing")), dict(start="avg_pool-synthetic-faces-demo-s0-1234")):
        r = Run(card.runs[0].folder); r.config = {**r.config, **more}
        taught = Card([r], card.table, 20)
        assert taught.kind == "mixed" and "difference" not in taught.printed() and report.SAYS["mixed"] in taught.limits()


def test_a_start_brings_along_all_it_had_learnt_from(home, tmp_path):
    "A sample whose start saw a drawn parsing set is told apart from a sample of photographs"
    table = named(home)
    first = run("avg_pool", table, "smoke", out=tmp_path)
    again = run("avg_pool", table, "smoke", out=tmp_path, start=first.folder)
    assert learnt_from(again)[0] == table.name and Card([again], table, 20).kind == "sample"
    again.config = {**again.config, "learned_from": [*again.config["learned_from"], "synthetic parsing"]}
    assert Card([again], table, 20).kind == "mixed"


def test_the_first_line_says_what_was_held_out(home):
    from symbiosis_nb.data.parts import held_out
    table = held_out(named(home), .2)
    first, *rest = report.opening(replace(table, notes=["a note", *table.notes])).splitlines()
    assert first.startswith(table.name) and "training samples are held out by person for selection." in first and rest == ["a note"]


def test_verdicts_are_written_as_they_fall(tmp_path):
    from symbiosis_nb.claims import Ledger
    Ledger("pse", "a set", tmp_path/"pse").fact("pse-08", True, "more", "more")
    assert pd.read_csv(tmp_path/"pse"/"claims.csv").id.tolist() == ["pse-08"]


def test_svms_train_on_all_that_is_not_tested_on(home):
    from symbiosis_nb.readings import svm_scores
    table = named(home)
    features = np.random.default_rng(0).normal(size=(len(table), 5)); features[:, 0] += 3*table.labels[:, 0]
    joined = replace(table, split=np.where(table.split == "valid", "train", table.split))
    assert np.array_equal(svm_scores(features, table), svm_scores(features, joined))


@pytest.mark.parametrize("trunk, row, printed", [("se_resnet50", "PSE(b)-SE", 91.23), ("alexnet_bn", "PSE(b)-Alex", 91.13), ("small", "PSE(b)-Alex", 91.13)])
def test_printed_numbers_are_those_of_the_trunk_that_ran(card, trunk, row, printed):
    "Two trunks of one paper have numbers of their own"
    r = SimpleNamespace(method="pse_b", config={**card.runs[0].config, "method": "pse_b", "profile": {**card.runs[0].config["profile"], "backbone": trunk}})
    meant = Card.meant(SimpleNamespace(of=lambda m: [r]), "pse_b")
    gold = golden(meant.rows, variant="aligned")
    assert set(gold.method) == {row} and ("cvgj" in meant.note) == (trunk != "se_resnet50") and gold[gold.attribute == "mean"].value.tolist()[0] == printed


def test_nobodys_printed_numbers(card):
    alone = Card(card.runs, card.table, 20, dataset="")
    assert len(alone.printed()) == 0 and not any("printed" in c for c in alone.attributes("AP", printed=True))


def test_papers_spell_attributes_their_own_way():
    assert own_spelling(["Has_Long_Hair", "T-Shirt", "Nobody"], ("has_long_hair", "has_long", "T-shirt")) == {"Has_Long_Hair": "has_long_hair", "T-Shirt": "T-shirt"}


def test_notes_on_methods_are_shown(card, tmp_path, monkeypatch):
    noted = METHODS["avg_pool"].__class__("avg_pool", "symbiosis", "Avg. pooling", note="a remark")
    monkeypatch.setitem(METHODS, "avg_pool", noted)
    assert card.remarks().note.tolist() == ["a remark"] and "a remark" in write_html(card, tmp_path/"r.html").read_text()


def test_labels_before_noise_are_the_limit(tmp_path):
    faces = make_faces(tmp_path/"faces", 160)
    r = run("avg_pool", faces, "smoke", out=tmp_path/"runs")
    row = Card([r], faces, 20).scores().loc["labels before noise (limit)"]
    assert 92 < float(row.accuracy) < 99.5 and float(row.AP) > 70
    assert synthetic_root(faces) == tmp_path/"faces"


def test_no_limit_without_clean_labels(card): assert "labels before noise (limit)" not in card.scores().index


def test_every_region_of_a_method_that_parses(tmp_path):
    "The means of its regions are those that the run wrote"
    faces, parsing = make_faces(tmp_path/"faces", 60), make_parsing(tmp_path/"parsing", 20)
    r = run("sa", faces, "smoke", parsing=parsing, out=tmp_path/"runs")
    c = Card([r], faces, 20)
    shown, means = c.parsing_regions(), r.done["parsing"]
    assert shown.index.tolist() == list(parsing.regions.names) and shown.columns.tolist() == ["SA, accuracy", "SA, IoU", "SA, F1"]
    assert shown["SA, IoU"].mean() == pytest.approx(100*means["mean_IoU"], abs=.02)
    assert shown["SA, accuracy"].mean() == pytest.approx(100*means["class_accuracy"], abs=.02)
    assert (write_tables(c, tmp_path/"kept")/"parsing_regions.csv").is_file() and "SA, F1" in write_html(c, tmp_path/"r.html").read_text()
    small = Run(keep_small(r, tmp_path/"small"))
    assert small.regions.equals(r.regions)


def test_parsing_and_localisation_blocks(card, tmp_path):
    assert len(card.parsing()) == 0 and not (write_tables(card, tmp_path/"none")/"parsing.csv").exists()
    names = dict(class_accuracy=.5, mean_IoU=.4, class_accuracy_no_background=.3, mean_IoU_no_background=.2)
    r = Run(card.runs[0].folder); r.done = {**r.done, "parsing": names}
    means = pd.DataFrame(dict(pointing=[50., 20., 10.], overlap=[40., 20., 10.]), index=["avg_pool", "centre prior", "chance"])
    per = pd.DataFrame({"avg_pool": 50.}, index=list(card.table.names))
    c = Card([r], card.table, 20)
    folder = write_tables(c, tmp_path/"some", localisation=(means, per))
    assert pd.read_csv(folder/"parsing.csv", index_col=0).loc["Avg. pooling", "mean IoU"] == 40
    assert pd.read_csv(folder/"localisation.csv", index_col=0).equals(means) and len(pd.read_csv(folder/"localisation_attributes.csv")) == 40
    page = write_html(c, tmp_path/"r.html", localisation=(means, per)).read_text()
    assert "Where the models look" in page and "Parsing" in page and "Where the models look" not in write_html(card, tmp_path/"r.html").read_text()


def test_printed_numbers_per_attribute(home):
    faces = named(home)
    c = tiny(home, ("avg_pool", "blan"), table=faces)
    ours = c.attributes("accuracy")
    shown = c.attributes("accuracy", printed=True)
    assert list(ours) == ["Avg. pooling", "BLAN"] and shown[list(ours)].equals(ours)
    assert shown.loc["Bald", "printed: BLAN (w/ OS) (blan, Table 7)"] == 99.02
    assert list(c.attributes("AP", printed=True)) == list(ours)


def test_every_number_in_runs_csv_is_todays(card, tmp_path):
    kept = pd.read_csv(write_tables(card, tmp_path/"t")/"runs.csv").set_index("method")
    assert kept.loc["avg_pool", "accuracy_tuned"] == pytest.approx(card.frames()["avg_pool"].accuracy_tuned.mean(), abs=1e-4)


def test_balanced_accuracy_stands_beside_the_paper_after_fine_tuning(tmp_path):
    "The paper's balanced accuracies are fine-tuned; ours are said to be, or not to be"
    from symbiosis_nb.inputs import resolve
    from symbiosis_nb.methods import METHODS, fine_tuning, make_profile
    from symbiosis_nb.data.sources import open_faces
    table, recipe = open_faces(profile="smoke"), resolve(make_profile("smoke"), METHODS["avg_pool"]).recipe
    first = run("avg_pool", table, "smoke", out=tmp_path)
    fine = run("avg_pool", table, "smoke", out=tmp_path, start=first.folder, **fine_tuning(recipe))
    assert fine.config["profile"]["recipe"]["lr"] == recipe.lr/10
    how = lambda card: card.printed().set_index("metric").how["balanced_accuracy"]
    assert "not fine-tuned" in how(report.Card([first], table, 20))
    card = report.Card([first], table, 20, fine_tuned=(fine,))
    assert how(card).startswith("fine-tuned") and card.balanced().iloc[0]["balanced loss"] == report.percent(fine.scores.balanced_accuracy.mean())


def test_changed_settings_keep_the_papers_recipe():
    from symbiosis_nb.inputs import resolve
    from symbiosis_nb.methods import METHODS, make_profile
    m = METHODS["ssp"]
    assert resolve(make_profile("paper", epochs=5), m).recipe == __import__("dataclasses").replace(m.recipe, epochs=5, iterations=None)


def test_intervals_are_free_of_the_bootstraps_bias():
    "Copies of a positive help each other: resampled average precision of a weak score is too high, and an interval around it would be"
    rng = np.random.default_rng(0)
    y, s = (rng.random((200, 40)) < .05).astype(float), rng.normal(size=(200, 40))
    value = np.nanmean(metrics.average_precision(s, y, np.ones_like(y)))
    drawn = stats.bootstrap_mean(metrics.average_precision, s, y, np.ones_like(y), stats.cluster_weights(None, 200, 400))
    assert drawn.mean() > value + .01
    plain, moved = stats.interval(drawn), stats.interval(drawn, value)
    assert moved[0] < value < moved[1] and np.isclose(np.subtract(*plain), np.subtract(*moved)) and np.isclose(plain[0] - moved[0], drawn.mean() - value)
    assert stats.paired(value, drawn)["low"] == moved[0]


def test_comparisons_are_in_points_and_have_directions_not_verdicts(card):
    row = card.comparisons().iloc[0]
    assert re.fullmatch(r"[+-]\d+\.\d\d", row.difference) and row.standing in ("above", "below", "undecided")
    d = card.difference("spp_net", "avg_pool")
    assert float(row.low) == pytest.approx(100*d["low"], abs=.006), "points, where `difference` has shares of one"
    assert report.p_text(.0004) == "< 0.001" and re.fullmatch(r"< 0.001|[01]\.\d{3}", row["p (accuracy)"])


def test_one_run_in_two_rows_is_not_compared(card, tmp_path):
    c = Card([card.runs[0], Run(card.runs[0].folder, "inception")], card.table, 20)
    assert c.comparisons().standing.tolist() == ["one run serves both"] and len(c.leaders()) == 0 and c.attribute_differences()[0].shape[1] == 0
    assert "one run serves both" in write_html(c, tmp_path/"r.html").read_text()


def test_the_best_is_compared_with_the_next_together(card):
    names = [card.title(m) for m in card.ranked]
    assert card.leaders().index.tolist() == [f"{names[0]} − {names[1]}"] and set(card.leaders().standing) <= {"ahead", "tie"}
    assert card.scores().index[-2:].tolist() == names, "the best first"


def test_what_still_rises_is_a_limit(card):
    r = Run(card.runs[0].folder); r.done = {**r.done, "rising": True}
    said = [l for l in Card([r], card.table, 20).limits() if "Still rising at the last epoch: Avg. pooling" in l]
    assert len(said) == 1


def test_a_page_of_one_method_and_one_of_many(card, tmp_path):
    one = write_html(Card(card.runs[:1], card.table, 20), tmp_path/"one.html").read_text()
    assert "One method on" in one and "leaders" not in one
    many = [Run(card.runs[k % 2].folder, f"m{k:02d}") for k in range(19)]
    page = write_html(Card(many, card.table, 20, baseline="m00"), tmp_path/"many.html").read_text()
    assert "m18" in page and "others" in page, "a few methods in colour, the others in grey"


def test_pages_say_what_pictures_show_and_headings_head(card, tmp_path):
    page = write_html(card, tmp_path/"r.html").read_text()
    assert all(re.search('aria-label="[^"]+"', s) for s in re.findall("<svg [^>]*>", page)) and all(re.search('alt="[^"]+"', s) for s in re.findall("<img [^>]*>", page))
    assert all("scope=" in h for h in re.findall(r"<th[ >][^>]*", page)) and "http" not in page
    for said in ("smallest_gap", "balanced_accuracy", ">nan<"): assert said not in page, said
    ids = re.findall(r'<section id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'<a href="#([^"]+)"', page)) == set(ids)


def test_a_methods_colour_is_the_same_everywhere():
    from symbiosis_nb.plot import colours
    from symbiosis_nb.methods import METHODS
    every = colours(METHODS)
    assert len(set(every.values())) == 20 == len(METHODS)
    assert all(colours([m.title])[m.title] == every[k] == colours([k])[k] for k, m in METHODS.items())
