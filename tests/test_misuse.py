"What somebody may hand in that does not fit: it is refused or said, never measured as something else"
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import picture_table
from PIL import Image
from symbiosis_nb import metrics as M, stats
from symbiosis_nb.core import DataError
from symbiosis_nb.data.own import drawn_parts, table_from_csv, table_from_folders
from symbiosis_nb.data.protocols import resplit
from symbiosis_nb.data.sheets import Pictures
from symbiosis_nb.jobs import limit_table, weights_for
from symbiosis_nb.data.loaders import Field
from symbiosis_nb.kept import Run, check_pictures
from symbiosis_nb.methods import Method, printed_set, register
from symbiosis_nb.page import write_html
from symbiosis_nb.predictor import several
from symbiosis_nb.recipes import make_profile, read_settings
from symbiosis_nb.report import Card
from symbiosis_nb.runs import run
from symbiosis_nb.training import build_model, start_from
from symbiosis_nb.jobs import make_job
from symbiosis_nb.vocab import CELEBA, AttributeVocab

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path/"cache"))


@pytest.fixture
def table(tmp_path): return picture_table(tmp_path/"pictures")


@pytest.fixture
def asked(tmp_path): return dict(out=tmp_path/"runs", precision="float32", limit=None)


def turned(table):
    names = list(table.names)[::-1]
    return table.but(vocab=AttributeVocab("turned", tuple(names)), labels=table.labels[:, ::-1], known=table.known[:, ::-1])


# cards

def test_a_card_of_other_attributes_is_refused(table, asked):
    r = run("avg_pool", table, "smoke", **asked)
    with pytest.raises(DataError, match="answers for"): Card([r], turned(table))
    with pytest.raises(DataError, match="answers for"): Card([r, run("avg_pool", turned(table), "smoke", 1, **asked)], table)
    with pytest.raises(DataError, match="there is no run"): Card([], table)


@pytest.mark.parametrize("name, printed", [("LFWA, aligned", "LFWA"), ("CelebA (aligned)", "CelebA"), ("LFWA, aligned to CelebA", "LFWA"), ("my faces", "CelebA")])
def test_a_card_stands_beside_its_own_sets_print(name, printed):
    assert printed_set(name, CELEBA.names) == printed and printed_set(name, CELEBA.names[:2]) == ""


def test_nobodys_print_stands_beside_ones_own_attributes(table, asked):
    mine = table.but(vocab=AttributeVocab("mine", ("a", "b")), labels=table.labels[:, :2], known=table.known[:, :2])
    card = Card([run("avg_pool", mine, "smoke", **asked)], mine, replicates=20)
    assert card.dataset == "" and not len(card.printed())
    with pytest.raises(ValueError, match="no row is called 'avgpool'"): card.comparisons(against="avgpool")
    with pytest.raises(ValueError, match="rows are compared by"): card.comparisons("AUROC")


def test_one_person_gives_no_interval(table, asked, tmp_path):
    one = replace(table, identity=np.where(table.split == "test", 7, table.identity))
    card = Card([run("avg_pool", one, "smoke", **asked), run("spp_net", one, "smoke", **asked)], one, replicates=20)
    assert card.scores().loc["SPPNet*", "AP 95 %"] == "" and card.comparisons().standing.tolist() == ["undecided"]
    assert "The test part shows one person: there is no interval." in card.limits() and "nan" not in " ".join(card.limits())
    d = card.difference("spp_net", "avg_pool")
    assert stats.verdict(d["low"], d["high"]) == "cannot tell" and "tie" in set(card.leaders().standing)
    assert "nan" not in write_html(card, tmp_path/"card.html").read_text().split("</style>")[1].split("<script")[0]


def test_a_test_part_where_nobody_has_an_attribute_makes_a_page(table, asked, tmp_path):
    labels = table.labels.copy(); labels[table.split == "test"] = 0
    none = table.but(vocab=AttributeVocab("mine", table.names), labels=labels)
    card = Card([run("avg_pool", none, "smoke", **asked), run("spp_net", none, "smoke", **asked)], none, replicates=20)
    said = " ".join(card.limits())
    assert "One answer only in the test part" in said and "nan" not in said
    assert write_html(card, tmp_path/"card.html").is_file()


# runs

def test_another_width_is_no_start(table, asked):
    first = run("avg_pool", table, "smoke", **asked)
    wider = build_model(make_job("avg_pool", table, "smoke width=.5"))
    with pytest.raises(DataError, match="another trunk or width"): start_from(wider, first.folder, table.names)
    assert start_from(build_model(make_job("spp_net", table, "smoke")), first.folder, table.names)   # another head is left, the trunk taken


@pytest.mark.parametrize("left", [100, 0])
@pytest.mark.parametrize("name, read", [("predictions.npz", lambda r: r.arrays), ("scores.parquet", lambda r: r.scores), ("model.safetensors", lambda r: r.weights()),
                                        ("log.csv", lambda r: r.log)])
def test_a_damaged_file_is_named(table, asked, name, read, left):
    if name == "log.csv": left = 0   # the first lines of a list are a list
    folder = run("avg_pool", table, "smoke", **asked).folder
    (folder/name).write_bytes((folder/name).read_bytes()[:left])
    with pytest.raises(DataError, match=f"{name} is damaged"): read(Run(folder))


def test_a_part_of_sorted_pictures_has_all_of_them(table):
    labels = np.sort(table.labels[:, :1], 0)
    mine = table.but(vocab=AttributeVocab("mine", ("a",)), labels=labels, known=table.known[:, :1], split=np.array(["train", "test"]*48))
    part = limit_table(mine, 16)
    assert part.counts() == dict(train=16, valid=0, test=8) and 0 < part.prevalence("train")[0] < 1
    spread = [np.linspace(first, last, n).round().astype(int) for first, last, n in ((0, 63, 8), (64, 79, 4), (80, 95, 4))]
    assert limit_table(table, 8).paths == table.take(np.concatenate(spread)).paths   # of the papers' sets too: LFWA is sorted by person


def test_what_cannot_be_learnt_is_said(table):
    labels = table.labels.copy(); labels[:, 0] = 1
    with pytest.warns(UserWarning, match="every training label of a is the same"):
        make_job("avg_pool", table.but(vocab=AttributeVocab("mine", ("a",)), labels=labels[:, :1], known=table.known[:, :1]), "smoke")


@pytest.mark.parametrize("text, value", [("augment=false", False), ("augment=True", True), ("native=none", None), ("size=80x64", (80, 64)), ("backbone=small", "small")])
def test_words_are_read_as_they_are_meant(text, value): assert list(read_settings(text).values()) == [value]


@pytest.mark.parametrize("settings", ["augment=no", "wd=-1", "mom=2", "margin=.5", "mask_share=0", "optimizer=adamw", "schedule=poly", "bs=16.5", "limit=1.5"])
def test_settings_that_cannot_be_meant_are_refused(table, settings):
    with pytest.raises(ValueError, match=settings.split("=")[0]): make_job("avg_pool", table, f"smoke {settings}")


def test_weights_may_lie_at_any_path():
    assert weights_for("pse_a", "pse='/my dir/a=b.pth' scratch") == "/my dir/a=b.pth" and weights_for("ssp", "pse='/my dir/a.pth' scratch") == "scratch"
    assert weights_for("ssp", "/home/o'brien/a.pth") == "/home/o'brien/a.pth" and weights_for("ssp", r"'C:\my files\a.pth'") == r"C:\my files\a.pth"
    with pytest.raises(ValueError, match="neither a method nor a paper"): weights_for("avg_pool", "my-net=scratch")
    assert weights_for("ssp", "/data/a=b.pth") == "/data/a=b.pth" and weights_for("ssp", r"C:\files\a.pth") == r"C:\files\a.pth"
    with pytest.raises(ValueError, match="separated by spaces"): weights_for("pse_a", "pse=scratch,general_to_specific=scratch")


# own tables

@pytest.fixture
def sheet(tmp_path):
    "Two folders of six pictures with the same names, and a writer of tables of them"
    for kind in ("images", "masks"):
        (tmp_path/kind).mkdir()
        for i in range(6): Image.new("RGB", (8, 8), (40*i, 0, 200 if kind == "masks" else 0)).save(tmp_path/kind/f"{i}.png")
    def write(header, row): (tmp_path/"my.csv").write_text("\n".join([header, *(row.format(i=i, y=i % 2) for i in range(6))])); return tmp_path/"my.csv"
    return write


def test_two_columns_of_pictures_are_not_guessed(sheet):
    csv = sheet("mask,image,hat", "masks/{i}.png,images/{i}.png,{y}")
    with pytest.raises(DataError, match="'mask' and 'image' all name pictures"): table_from_csv(csv)
    assert [p.parent.name for p in table_from_csv(csv, pictures="image").paths] == ["images"]*6
    csv = sheet("name,image,hat", "images/{i},images/{i}.png,{y}")   # both mean the same
    assert [p.parent.name for p in table_from_csv(csv).paths] == ["images"]*6


def test_a_named_folder_counts(tmp_path, sheet):
    csv = sheet("image,hat", "images/{i}.png,{y}")
    Image.new("RGB", (8, 8)).save(tmp_path/"0.png"); (tmp_path/"images"/"0.png").unlink()
    with pytest.raises(DataError, match="there is no picture 'images/0.png'"): table_from_csv(csv)
    assert len(table_from_csv(csv, on_missing="skip")) == 5
    assert Pictures(tmp_path/"masks").find("another/place/masks/3.png") == [tmp_path/"masks"/"3.png"]   # what lies above is another machine's


def test_copies_under_other_names_are_one_picture(tmp_path, sheet):
    for i in range(0, 6, 2): (tmp_path/"images"/f"{i + 1}.png").write_bytes((tmp_path/"images"/f"{i}.png").read_bytes())
    drawn = table_from_csv(sheet("image,hat", "images/{i}.png,{y}"))
    assert "copies of other pictures, under other names: 3" in drawn.notes and all(drawn.split[i] == drawn.split[i + 1] for i in (0, 2, 4))
    rows = "\n".join(["image,hat,split", *(f"images/{i}.png,{i % 2},{s}" for i, s in enumerate(["train", "test", "train", "train", "valid", "valid"]))])
    (tmp_path/"given.csv").write_text(rows)
    assert any("copies under other names, in other parts: 1" in n for n in table_from_csv(tmp_path/"given.csv").notes)


def test_an_exact_name_wins(tmp_path):
    (tmp_path/"p").mkdir()
    for name in ("a.png", "A.png"): Image.new("RGB", (8, 8)).save(tmp_path/"p"/name)
    if len(list((tmp_path/"p").iterdir())) < 2: pytest.skip("this disk does not tell them apart")
    assert [p.name for n in ("a.png", "A.png") for p in Pictures(tmp_path/"p").find(n)] == ["a.png", "A.png"]


def test_a_placeholder_does_not_weld_people_together(tmp_path, sheet):
    for i in (1, 3, 5): (tmp_path/"images"/f"{i}.png").write_bytes((tmp_path/"masks"/"0.png").read_bytes())   # "not there", for half of them
    people = table_from_csv(sheet("image,hat,person", "images/{i}.png,{y},p{i}"))
    assert sorted(people.counts().values()) == [1, 1, 4]


@pytest.mark.parametrize("asked, names", [("has hat", ("has hat",)), ("has hat, big nose", ("has hat", "big nose")), (["big nose"], ("big nose",)), ("has hat;big nose", ("has hat", "big nose"))])
def test_names_may_hold_spaces(sheet, asked, names):
    assert table_from_csv(sheet("image,has hat,big nose", "images/{i}.png,{y},{y}"), attributes=asked).names == names


def test_shares_are_shares():
    groups = np.arange(60)
    assert (drawn_parts(groups, valid_share=0) == "valid").sum() == 0 and (drawn_parts(groups, .1, .2) == "valid").sum() == 6
    for valid, test in ((.1, 20), (.6, .6), (-1, .2), (.1, 0)):
        with pytest.raises(ValueError, match="shares of one"): drawn_parts(groups, valid, test)


def test_words_that_are_no_choice_are_refused(table):
    with pytest.raises(ValueError, match="by is 'image' or 'person'"): resplit(table, by="people")
    with pytest.raises(ValueError, match="a split is train"): table.prevalence("training")
    with pytest.raises(DataError, match="is no picture"): several(3)


# metrics

def test_metrics_refuse_what_they_cannot_measure():
    rng = np.random.default_rng(0); s, y = rng.normal(size=(50, 2)), rng.integers(0, 2, (50, 2)).astype(float)
    for f in (M.accuracy, M.average_precision, M.auroc, M.balanced_accuracy):
        with pytest.raises(ValueError, match="labels are 0 or 1"): f(s, 2*y - 1)
        with pytest.raises(ValueError, match="the same shape"): f(s, y[:, :1])
        with pytest.raises(ValueError, match="are NaN"): f(np.where(y > 0, np.nan, s), y)
        open_, known = y.copy(), np.ones_like(y); open_[:9, 0], known[:9, 0] = np.nan, 0
        assert np.array_equal(f(s, open_), f(s, y, known))
    with pytest.raises(ValueError, match="regions 1 to 3 were predicted"): M.confusion([0, 1], [3, 1], 2)
    assert np.isnan(M.instance_scores(s, 0*y)["F1"]) and np.isnan(stats.paired_permutation([1., np.nan, 0]))
    assert np.isnan(M.instance_scores(s, 0*y, weight=np.ones((2, 50)))["F1"]).tolist() == [True, True]


# methods of one's own

def own(name, forward):
    from symbiosis_nb.methods import Method, register
    from symbiosis_nb.models.pooling import AvgPool
    class Net(AvgPool):
        def forward(self, x): return forward(super().forward(x))
    register(Method(name, "", name, lambda b: Net(b.trunk(), b.n)))


@pytest.fixture
def forgotten():
    from symbiosis_nb.methods import METHODS
    yield
    METHODS.pop("mine", None)


@pytest.mark.parametrize("forward, said", [(lambda y: y[:, :3], r"answers with \(\d+, 3\), not with logits"), (lambda y: "yes", "answers with str"), (lambda y: (), "answers with tuple")])
def test_what_is_no_answer_is_said_before_training(table, asked, forgotten, forward, said):
    own("mine", forward)
    with pytest.raises(ValueError, match=f"mine: its model {said}"): run("mine", table, "smoke", **asked)


def test_probabilities_are_no_logits(table, asked, forgotten):
    own("mine", torch.sigmoid)
    with pytest.warns(UserWarning, match="logits are expected"): run("mine", table, "smoke", **asked)


def test_a_name_makes_one_folder(forgotten):
    for name in ("a/b", "..", "", "a:b"):
        with pytest.raises(ValueError, match="names folders"): own(name, lambda y: y)
    own("mine", lambda y: y)


def test_other_slips(table, asked):
    from symbiosis_nb.combine import _pool
    with pytest.raises(ValueError, match="executor is one of local, slurm"): _pool("lokal", Path("."))
    with pytest.raises(ValueError, match="group_lrs has 1 factors"): run("avg_pool", table, "smoke", group_lrs=(1,), **asked)
    assert make_job("avg_pool", table, "smoke bs=16.0 limit=3e1").profile.recipe.bs == 16 and make_job("avg_pool", table, "smoke", overrides=dict(limit=30.)).table.counts()["train"] == 30
    folders = [make_job("avg_pool", table, "smoke", overrides=dict(lr=lr)).folder for lr in (4e-3, np.float64(4e-3))]
    assert folders[0] == folders[1]


def test_settings_that_would_change_nothing_are_refused(table, asked):
    with pytest.raises(ValueError, match="one network for all attributes, so that attributes would change nothing"): run("avg_pool", table, "smoke", attributes=("Male",), **asked)
    with pytest.raises(ValueError, match="attributes is 'Male': give a tuple of names"): run("g2s_12", table, "smoke", attributes="Male", **asked)
    with pytest.raises(ValueError, match="tune is 'x': give a Recipe"): run("g2s_12", table, "smoke", tune="x", **asked)
    with pytest.raises(ValueError, match="generator is 'big': give a Generator"): run("avg_pool", table, "smoke", generator="big", **asked)
    with pytest.raises(ValueError, match=r"unknown setting 'changes'"): make_profile("smoke", changes={})
    assert make_profile("smoke", size="112x92").size == (112, 92)


def test_words_that_are_nearly_right_are_said(table, asked):
    with pytest.raises(ValueError, match=r"unknown method 'avgpool': did you mean avg_pool\? known are"): run("avgpool", table, "smoke", **asked)
    with pytest.raises(ValueError, match="weights is 'imagnet': give 'imagenet', 'scratch' or a file"): run("avg_pool", table, "smoke", weights="imagnet", **asked)
    with pytest.raises(ValueError, match="a field is of kind image, picture, maps, label, target, not 'images'"): Field("images", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="not from a AttributeTable: pixel_store"): Field("image", table)


def test_a_builder_that_forgets_its_return_is_told(table, asked, forgotten):
    register(Method("mine", "", "mine", lambda b: None))
    with pytest.raises(ValueError, match="mine: its builder gives a NoneType, no network"): run("mine", table, "smoke", **asked)


def test_a_folder_that_is_no_run_says_what_it_is(table, asked, tmp_path):
    r = run("avg_pool", table, "smoke", **asked)
    with pytest.raises(DataError, match="typo is not there: is it the folder that `run` gave"): Run(r.folder.with_name("typo"))
    with pytest.raises(DataError, match=f"is a folder of runs, not a run: name one of {r.folder.name}"): Run(r.folder.parent)
    (tmp_path/"half").mkdir()
    with pytest.raises(DataError, match="is not a finished run .* call `run` again to finish it"): Run(tmp_path/"half")
    with pytest.raises(DataError, match=r"nope.csv: there is no such file$"): table_from_csv(tmp_path/"nope.csv")


def test_a_card_is_of_its_own_table(table, asked):
    r = run("avg_pool", table, "smoke", **asked)
    with pytest.raises(DataError, match="was measured on pictures of pictures that are not in the test part of pictures"): Card([r], table.take(np.arange(95)))
    with pytest.raises(DataError, match="is a str, not a Run: Run\\(folder\\) opens"): Card([str(r.folder)], table)


def test_comparisons_say_whose_points_they_are(table, asked):
    card = Card([run(m, table, "smoke", **asked) for m in ("avg_pool", "spp_net")], table, replicates=20)
    assert [card.comparisons(m).index.name for m in ("AP", "balanced_accuracy")] == ["points of AP", "points of balanced accuracy"]


def test_other_limits_are_named(table, asked):
    runs = [run("avg_pool", table, "smoke", **asked | dict(limit=n)) for n in (16, 24)]
    with pytest.raises(DataError, match="8 and 12 of them: were they opened with one limit"): check_pictures(runs)


def test_ones_own_pictures_are_no_sample_of_a_papers(table, asked):
    mine = table.but(vocab=AttributeVocab("mine", ("a", "b")), labels=table.labels[:, :2], known=table.known[:, :2])
    card = Card([run("avg_pool", mine, "smoke", **asked)], mine, replicates=20)
    assert card.kind == "own" and "no paper here has" in card.limits()[0]


def test_two_parts_of_one_set_keep_their_people(table):
    from symbiosis_nb.data.protocols import cross
    a, b = table.take(np.arange(96) % 2 == 0), table.take(np.arange(96) % 2 == 1)   # two pictures of each person, one in each
    both = cross(a, b.but(split=np.where(b.split == "test", "train", "test")))   # people of a's training part among them
    assert set(both.identity[both.split == "test"]) & set(both.identity[both.split != "test"])
    other = cross(a, replace(b, name="others", split=np.where(b.split == "test", "train", "test")))
    assert not set(other.identity[other.split == "test"]) & set(other.identity[other.split != "test"])
