"What can be known before training is refused before it, in one sentence; photographs and drawings do not mix; every training sample can be reached."
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import picture_table
from symbiosis_nb.campaign import check, named, same_world, steps_of, together, train_all
from symbiosis_nb.core import DataError
from symbiosis_nb.data import sources
from symbiosis_nb.data.parts import first_share, held_out, parsing_part, training_part
from symbiosis_nb.data.tables import AttributeTable, ParsingTable
from symbiosis_nb.inputs import parser_run, resolve
from symbiosis_nb.jobs import SIZES
from symbiosis_nb.methods import METHODS, make_profile
from symbiosis_nb.page import is_kept, may_show
from symbiosis_nb.vocab import CELEBA, HELEN, WIDER

ASKED = dict(methods="avg_pool ssp", seeds=1, profile="demo", out="", weights="")


@pytest.fixture(scope="module")
def table(tmp_path_factory): return picture_table(tmp_path_factory.mktemp("campaign")/"pictures")


def parsing(table, name="Helen"): return ParsingTable(name, HELEN, table.paths, table.split, lambda i: None)


def sentence(error):
    "The message, which must be one short paragraph"
    said = str(error.value)
    assert "\n" not in said and len(said) < 700
    return said


@pytest.mark.parametrize("changed, says", [
    (dict(methods="avg_pol"), "did you mean avg_pool?"),
    (dict(methods="SSP"), "unknown method 'SSP'"),
    (dict(methods=""), "no method is named"),
    (dict(methods="ssp sa ssp"), "ssp is named 2 times"),
    (dict(methods="g2s_4"), "did you mean g2s_"),
    (dict(seeds=0), "seeds is 0: give a whole number, 1 or more"),
    (dict(seeds=True), "seeds is True: give"), (dict(seeds="3"), "seeds is '3': give"), (dict(seeds=1.5), "seeds is 1.5: give"),
    (dict(out=5), "out is 5: give a folder, written as text"), (dict(data_root=["a"]), "data_root is ['a']: give a folder"),
    (dict(profile="papr"), "did you mean paper?"),
    (dict(on_bad="drop"), "unknown on_bad 'drop'"), (dict(on_missing=True), "unknown on_missing True"),
    (dict(variant="in the wild"), "unknown variant"), (dict(faces="detect"), "did you mean detected?"),
    (dict(valid_share=1), "from 0 to below 1"), (dict(share=-.1), "from 0 to below 1"), (dict(longer=0), "above 0"), (dict(gan="lsgn"), "did you mean lsgan?"),
    (dict(weights="vgg.pth"), "there is no file vgg.pth"), (dict(weights="blam=x.pth"), "neither a method nor a paper"),
    (dict(methods="pse_b", profile="paper"), "weights that no package brings"),
])
def test_parameters_that_cannot_be_meant(changed, says):
    with pytest.raises((ValueError, DataError)) as error: check(ASKED | changed)
    assert says in sentence(error)


def test_functions_of_a_notebook_are_no_parameters():
    with pytest.raises(DataError, match="weights that no package brings"): check(ASKED | dict(methods="pse_b", profile="paper", backbone=print, out=print))


def test_parameters_as_people_write_them():
    for methods in ("avg_pool ssp", "avg_pool, ssp", ["avg_pool", "ssp"], "avg_pool,ssp "): assert check(ASKED | dict(methods=methods)) == ["avg_pool", "ssp"]
    assert check(ASKED | dict(methods="all")) == list(METHODS)
    assert check(ASKED | dict(methods="pse_b", profile="paper", weights="scratch", backbone="timm:resnet10t", helper=print)) == ["pse_b"]


def test_all_methods_are_those_that_the_data_allow(table, capsys):
    "A CelebA folder need not have the list of landmarks"
    there = dict(data_root=table, parsing_root=parsing(table))
    assert check(ASKED | dict(methods="all"), **there) == [m for m in METHODS if m != "bbox"]
    assert "left out of all methods: bbox: pictures has no landmarks (list_landmarks_align_celeba.txt" in capsys.readouterr().out
    with pytest.raises(DataError, match="bbox needs landmarks, pictures has none: list_landmarks_align_celeba.txt, .* leave it out"): check(ASKED | dict(methods="bbox"), **there)
    marked = replace(table, landmarks=np.zeros((len(table), 5, 2)))
    assert check(ASKED | dict(methods="all"), data_root=marked, parsing_root=parsing(table)) == list(METHODS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(METHODS)), min_size=1, max_size=6), st.sampled_from([" ", ",", ", ", " ; "]))
def test_names_come_back_or_are_refused(names, part):
    if len(set(names)) == len(names): assert named(part.join(names), METHODS) == names
    else:
        with pytest.raises(ValueError, match="is named"): named(part.join(names), METHODS)


@pytest.mark.parametrize("rows, part", [(slice(0, 60), "test"), (slice(70, None), "train")])
def test_missing_parts(table, rows, part):
    with pytest.raises(DataError) as error: check(ASKED, ["avg_pool"], data_root=table.take(rows))
    assert f"has no {part} part" in sentence(error)


def test_what_methods_ask_of_the_data(table):
    with pytest.raises(DataError, match="bbox needs landmarks"): check(ASKED | dict(methods="bbox"), data_root=table)
    with pytest.raises(DataError, match="pass parsing_root"): check(ASKED, data_root=table, parsing_root=None)
    with pytest.raises(DataError, match="pass parsing_root"): check(ASKED | dict(methods="ssp_ssg"), data_root=table, parsing_root=None)   # its parts need it
    assert check(ASKED, data_root=table, parsing_root=parsing(table)) == ["avg_pool", "ssp"]


def test_photographs_and_drawings_do_not_mix(table):
    drawn = replace(table, name="synthetic faces")
    roots = dict(data_root=table, celeba_root=drawn, parsing_root=parsing(table, "synthetic parsing"))
    with pytest.raises(DataError) as error: same_world(**roots)
    assert "pictures holds photographs" in sentence(error) and "pass celeba_root and parsing_root (a folder with Helen" in str(error.value)
    with pytest.raises(DataError, match="pass parsing_root .a folder with LIP"): same_world(data_root=replace(table, frame="box"), parsing_root=roots["parsing_root"])
    with pytest.raises(DataError, match="pass data_root"): same_world(data_root=drawn, parsing_root=parsing(table))   # a real parsing set, drawn attributes
    same_world(data_root=table, celeba_root=table, parsing_root=parsing(table), lfwa_root=None)
    same_world(data_root=drawn, parsing_root=roots["parsing_root"])
    assert check(ASKED | dict(methods="avg_pool"), data_root=table, parsing_root=roots["parsing_root"]) == ["avg_pool"], "who needs no regions learns nothing from them"


def counted(name, vocab, train, valid, test, identity=None):
    n, split = train + valid + test, ["train"]*train + ["valid"]*valid + ["test"]*test
    labels = np.zeros((n, len(vocab)), int)
    return AttributeTable(name, vocab, [f"{i//3}.jpg" for i in range(n)] if identity is None else [f"{i}.jpg" for i in range(n)], labels, labels == 0, split, identity)


def test_every_training_sample_can_be_reached():
    lfwa = counted("LFWA", CELEBA, 5_640, 623, 6_880, np.arange(13_143)//2)
    wider = counted("WIDER Attribute", WIDER, 20_000, 8_345, 900)
    assert held_out(lfwa, 0).counts() == dict(train=SIZES["LFWA"], valid=0, test=6_880)
    assert training_part(wider, share=0).counts()["train"] == SIZES["WIDER"]
    some = held_out(lfwa, .1)
    assert 500 < some.counts()["valid"] <= 626 and f"{some.counts()['valid']:,} of 6,263 training samples are held out by person for selection" in some.notes
    assert held_out(some, 0).counts()["train"] == 6_263 and "none is held out" in held_out(some, 0).notes[-1]
    with pytest.raises(ValueError, match="below 1"): held_out(lfwa, 1)


def test_methods_train_without_a_validation_part(table, tmp_path):
    "SA too: the last epoch is what counts then"
    from symbiosis_nb.data.sources import open_parsing
    everything = held_out(replace(table, frame="aligned", name="synthetic pictures"), 0)
    runs = train_all(["avg_pool", "sa"], everything, open_parsing(profile="smoke"), "smoke", 1, tmp_path, options=dict(sa=dict(taps=None)))
    assert [r.config["counts"]["valid"] for r in runs] == [0, 0] and runs[1].config["options"] == dict(taps=None) and not runs[0].config["options"]
    for r in runs: assert np.array_equal(r.arrays["test_last"], r.arrays["test_selected"]) and "valid_targets" not in r.arrays


def test_a_share_of_the_parsing_pictures_is_as_long_as_all(table):
    whole = parsing_part(parsing(table))
    few = first_share(whole, 10)
    train = [p for p, s in zip(few.paths, few.split) if s == "train"]
    assert few.counts() == whole.counts() and set(train) == set(whole.paths[:8])   # 80 training and tuning pictures
    assert set(first_share(whole, 25).paths) > set(few.paths), "a larger share holds the smaller ones"


def test_ways_of_table_7_differ_in_their_start_only(table, tmp_path):
    "A parser alone by SA's recipe takes as many steps as SA, of as many parsing pictures"
    from symbiosis_nb.data.sources import open_faces, open_parsing
    faces, regions = open_faces(profile="smoke"), first_share(parsing_part(open_parsing(profile="smoke")), 25)
    asked, steps = resolve(make_profile("smoke", epochs=2), METHODS["sa"]), steps_of("sa", faces, "smoke", epochs=2)
    parser = parser_run(regions, replace(asked, parser="aspp", parser_recipe=replace(asked.recipe, iterations=steps)), out=tmp_path, regions=HELEN)
    sa, = train_all(["sa"], faces, regions, "smoke", 1, tmp_path, epochs=2)
    same = {k: v for k, v in parser.config["recipe"].items() if k not in ("iterations", "epochs")}
    assert same == {k: sa.config["profile"]["recipe"][k] for k in same} and steps == 2*(sa.config["counts"]["train"]//sa.config["profile"]["recipe"]["bs"])
    assert parser.config["recipe"]["iterations"] == steps and sa.config["parsing"]["digest"] == regions.digest


def test_settings_are_joined_with_their_options():
    how = together(dict(longer=2, options=dict(a=1)), dict(augment=False, options=dict(b=2)), {})
    assert how == dict(longer=2, augment=False, options=dict(a=1, b=2)) and "options" not in together(dict(longer=2))


def test_photographs_stay_out_of_kept_reports(table, tmp_path):
    (tmp_path/".git").mkdir()
    drawn = replace(table, name="synthetic faces")
    assert [is_kept(tmp_path/f) for f in ("reports", "reports/mine", "reports/local", "reports/local/runs", "elsewhere")] == [True, True, False, False, False]
    assert may_show(None, tmp_path/"reports", drawn) and may_show(True, tmp_path/"reports", drawn) and not may_show(False, tmp_path, drawn)
    assert not may_show(None, tmp_path, table) and may_show(True, tmp_path/"reports"/"local", table) and may_show(True, tmp_path/"mine", table, drawn)
    with pytest.raises(DataError, match="kept by git"): may_show(True, tmp_path/"reports"/"celeba", drawn, table)


def test_a_profile_may_be_followed_by_changes():
    "One word more is a setting, checked like the others before anything is read"
    asked = make_profile("onecycle size=112x92 epochs=4 backbone=small", lr=1e-3)
    assert (asked.name, asked.size, asked.backbone) == ("onecycle", (112, 92), "small")
    assert asked.changes == dict(iterations=None, epochs=4, lr=1e-3)
    check(dict(profile="demo epochs=2", methods="ssp"))
    for wrong, why in {"demmo": "did you mean demo", "demo epoch=2": "unknown setting 'epoch'", "demo epochs=0": "epochs is 0", "": "unknown profile"}.items():
        with pytest.raises(ValueError, match=why): check(dict(profile=wrong, methods="ssp"))


@pytest.mark.parametrize("frame", ["aligned", "centred", "whole"])
def test_lfwa_opens_in_the_frame_that_is_asked_for(frame, monkeypatch, tmp_path):
    "Faces of one's own copy are brought to CelebA's frame; the choice stands in the table's name"
    whole = replace(picture_table(tmp_path/"pictures"), name="LFWA")
    monkeypatch.setattr(sources.official, "lfwa", lambda root: whole)
    opened = sources.open_lfwa(str(tmp_path), "demo", frame)
    assert opened.name == dict(aligned="LFWA, aligned", centred="LFWA, centred", whole="LFWA")[frame]
    assert opened.frame == ("whole" if frame == "whole" else "aligned")
