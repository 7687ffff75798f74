"""What a table is given is brought to plain form by position, or refused with row, name and value; hypothesis tries 200 to 500 examples of each kind."""
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from symbiosis_nb.core import DataError, as_path, words
from symbiosis_nb.data.columns import SPLIT_WORDS, SPLITS
from symbiosis_nb.data.tables import AttributeTable, ParsingTable, check_split
from symbiosis_nb.vocab import HELEN, AttributeVocab

RELAXED = dict(deadline=None, derandomize=True, database=None)
NAMES = ("hat", "round glasses")
numbers = lambda n: st.lists(st.integers(0, 1), min_size=n, max_size=n)

def table(labels, known=None, split=None, **kwargs):
    labels = labels if hasattr(labels, "shape") else np.array(labels, object)
    n = len(labels)
    return AttributeTable("my faces", AttributeVocab("mine", NAMES), kwargs.pop("paths", [f"{i}.jpg" for i in range(n)]), labels, known,
                          ["train"]*n if split is None else split, **kwargs)

def refused(make, *words_):
    with pytest.raises(DataError) as e: make()
    for w in words_: assert w in str(e.value), (w, str(e.value))

FORMS = {"list": lambda a: a.tolist(), "tuple": lambda a: tuple(map(tuple, a.tolist())), "bool": lambda a: a.astype(bool), "float": lambda a: a.astype(float),
         "minus": lambda a: a*2 - 1, "frame": lambda a: pd.DataFrame(a, index=range(len(a), 0, -1)), "object": lambda a: a.astype(object),
         "generator": lambda a: (row for row in a.tolist()), "nullable": lambda a: pd.DataFrame(a).astype("Int64")}


@settings(max_examples=200, **RELAXED)
@given(st.lists(numbers(2), min_size=1, max_size=6), st.sampled_from(sorted(FORMS)))
def test_labels_of_every_form_are_the_same(rows, form):
    want = np.array(rows)
    labels = FORMS[form](want)
    t = AttributeTable("my faces", AttributeVocab("mine", NAMES), [f"{i}.jpg" for i in range(len(rows))], labels, None, ["train"]*len(rows))
    if form == "minus" and not (want == 0).any(): want = np.ones_like(want)   # all 1: nothing tells the two apart, nor need it
    assert t.labels.dtype == np.uint8 and (t.labels == want).all() and t.known.all()


@settings(max_examples=300, **RELAXED)
@given(st.lists(st.lists(st.one_of(st.sampled_from([0, 1, True, False, 0., 1., None, float("nan")]), st.floats(), st.integers(-3, 3), st.text(max_size=3)),
                         min_size=2, max_size=2), min_size=1, max_size=5))
def test_labels_are_right_or_refused_by_row_and_name(rows):
    values = [v for row in rows for v in row]
    missing = lambda v: v is None or v != v
    minus = any(v == -1 and not isinstance(v, str) for v in values)
    good = lambda v: missing(v) or not isinstance(v, str) and v in ((-1, 1) if minus else (0, 1))
    wrong = [(i, NAMES[j]) for i, row in enumerate(rows) for j, v in enumerate(row) if not good(v)]
    if wrong: return refused(lambda: table(rows), f"{len(wrong)} faulty value(s)", *[f"labels, row {i}, {name}" for i, name in wrong[:10]])
    t = table(rows)
    assert t.known.tolist() == [[not missing(v) for v in row] for row in rows]
    assert t.labels.tolist() == [[int(not missing(v) and v == 1) for v in row] for row in rows]
    assert any("NaN" in n for n in t.notes) == any(map(missing, values)) and any("-1" in n for n in t.notes) == minus


def test_unknown_labels_may_hold_anything():
    t = table(np.array([[1, 7], [np.nan, -1]]), known=[[1, 0], [0, 0]])
    assert t.labels.tolist() == [[1, 0], [0, 0]] and t.known.tolist() == [[True, False], [False, False]]
    refused(lambda: table(np.ones((1, 2)), known=[[2, 1]]), "known, row 0, hat")
    refused(lambda: table([["True", "False"]]), "labels, row 0, hat: True", "0 and 1")


@settings(max_examples=200, **RELAXED)
@given(st.lists(st.sampled_from(sorted(SPLIT_WORDS)), min_size=1, max_size=6), st.sampled_from([str.lower, str.upper, str.title]), st.booleans())
def test_split_words(parts, case, series):
    given_ = [case(p) for p in parts]
    t = table(np.ones((len(parts), 2)), split=pd.Series(given_, index=range(len(parts), 0, -1)) if series else given_)
    assert t.split.tolist() == [SPLIT_WORDS[p] for p in parts] and set(t.split) <= set(SPLITS)


@settings(max_examples=200, **RELAXED)
@given(st.text(max_size=12))
def test_other_split_words_are_refused_not_cut(word):
    if word.strip().lower() in SPLIT_WORDS: return
    refused(lambda: table(np.ones((2, 2)), split=["train", word]), "split, row 1")


@settings(max_examples=300, **RELAXED)
@given(st.lists(st.one_of(st.none(), st.sampled_from(["Al", "Bo", "Cy", ""]), st.just(float("nan"))), min_size=1, max_size=8))
def test_identity_may_be_words(who):
    t = table(np.ones((len(who), 2)), identity=who)
    known = [isinstance(w, str) and bool(w) for w in who]
    assert (t.identity >= 0).tolist() == known
    for i in range(len(who)):
        for j in range(len(who)):
            if known[i] and known[j]: assert (t.identity[i] == t.identity[j]) == (who[i] == who[j])
    check_split(t)


def test_identity_as_numbers():
    assert table(np.ones((3, 2)), identity=[3., np.nan, -1]).identity.tolist() == [3, -1, -1]
    refused(lambda: table(np.ones((2, 2)), identity=[1.5, 2]), "identity, row 0: 1.5")


HASHES = st.lists(st.one_of(st.just(-1), st.integers(-2**63, 2**63 - 1), st.integers(2**53, 2**53 + 3), st.integers(-4, 4)), min_size=1, max_size=8)
KEPT_AS = dict(list=list, object=lambda v: np.array(v, object), int64=lambda v: np.array(v, np.int64), gaps=lambda v: [None if x == -1 else x for x in v], nan=lambda v: [float("nan") if x == -1 else x for x in v],
               pandas=lambda v: pd.Series([None if x == -1 else x for x in v], dtype="Int64"), arrow=lambda v: pd.Series([None if x == -1 else x for x in v], dtype="int64[pyarrow]"),
               masked=lambda v: np.ma.masked_equal(np.array(v, np.int64), -1), uint64=lambda v: np.array([max(x, 0) for x in v], np.uint64) + np.uint64(2**63), several=lambda v: (x for x in v))

@settings(max_examples=100, **RELAXED)
@given(HASHES, st.sampled_from(sorted(KEPT_AS)))
def test_people_stay_apart_whatever_their_numbers(who, kind):
    "Hashes, negative and large numbers: only -1 and a gap are unknown, and numbers that fit stay what they are"
    if kind == "uint64": who = [max(x, 0) for x in who]
    found = table(np.ones((len(who), 2)), identity=KEPT_AS[kind](who)).identity
    assert found.dtype == np.int64 and ((found < 0) == (np.array([w == -1 for w in who]))).all()
    assert all((found[i] == found[j]) == (who[i] == who[j]) for i in range(len(who)) for j in range(len(who)))
    if min(who) >= -1 and kind != "uint64": assert found.tolist() == who


def test_floats_that_merge_people_are_refused():
    for large in (2.**53, -2.**60, np.float32(2**24)): refused(lambda: table(np.ones((2, 2)), identity=np.array([large, 1], type(large))), "identity, row 0")
    assert table(np.ones((2, 2)), identity=["Bo", -1]).identity.tolist() == [0, -1]


@settings(max_examples=300, **RELAXED)
@given(st.lists(st.one_of(st.floats(), st.integers(-5, 5)), min_size=4, max_size=4))
def test_boxes_are_finite_and_have_a_size_or_are_none(box):
    none, infinite = any(v != v for v in box), any(abs(v) == float("inf") for v in box)
    if infinite or not none and (box[2] <= 0 or box[3] <= 0): return refused(lambda: table(np.ones((1, 2)), boxes=[box]), "boxes, row 0")
    got = table(np.ones((1, 2)), boxes=[box]).boxes[0]
    assert np.isnan(got).all() if none else (got == box).all()


def test_landmarks_and_shapes():
    assert table(np.ones((2, 2)), landmarks=np.zeros((2, 10))).landmarks.shape == (2, 5, 2)
    refused(lambda: table(np.ones((1, 2)), landmarks=[[[0, float("inf")]]*5]), "landmarks, row 0")
    refused(lambda: table(np.ones((1, 2)), landmarks=np.zeros((1, 4, 2))), "landmarks has shape (1, 4, 2), expected (1, 5, 2)")
    refused(lambda: table(np.ones((1, 2)), frame="round"), "frame", "whole or aligned or box")


def test_all_faults_come_together():
    refused(lambda: table([[.8, 1]], split=["tset"], identity=[.5], boxes=[[0, 0, 0, 1]]), "4 faulty value(s)", "labels, row 0, hat: 0.8", "split, row 0: tset",
            "identity, row 0: 0.5", "boxes, row 0")


def test_a_series_is_read_by_position():
    frame = pd.DataFrame(dict(path=[f"{i}.jpg" for i in range(6)], hat=[0, 1]*3, scarf=1, part="train")).sample(frac=1, random_state=3)
    t = table(frame[["hat", "scarf"]], paths=frame.path, split=frame.part)
    assert [p.name for p in t.paths] == frame.path.tolist() and (t.labels[:, 0] == [int(p.stem) % 2 for p in t.paths]).all()
    parsing = ParsingTable("my parsing", HELEN, frame.path, frame.part, read_label=lambda i: None)
    assert [p.name for p in parsing.paths] == frame.path.tolist()


@settings(max_examples=300, **RELAXED)
@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1, max_size=20))
def test_paths_mean_the_same_at_every_entrance(text):
    if not text.strip(): return refused(lambda: table(np.ones((1, 2)), paths=[text]), "paths, row 0")
    try: want = as_path(text)
    except DataError: return
    assert want.is_absolute() and as_path(Path(text)) == want == as_path(want)
    assert table(np.ones((1, 2)), paths=(p for p in [text])).paths == [want]


def test_home_and_here(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path)); monkeypatch.chdir(tmp_path)
    assert as_path("~/a.jpg") == as_path("a.jpg") == tmp_path/"a.jpg" and as_path(2024) == tmp_path/"2024"
    for wrong in (None, ["a"], True, b"a"): refused(lambda: as_path(wrong), "not a path")
    refused(lambda: table(np.ones((2, 2)), paths=["a.jpg", None]), "paths, row 1: None")
    refused(lambda: table(np.ones((5, 2)), paths="a.jpg"), "paths is a str")


@settings(max_examples=300, **RELAXED)
@given(st.lists(st.text(st.characters(whitelist_categories=("Ll", "Nd")), min_size=1, max_size=8), max_size=5), st.sampled_from([" ", ", ", ",", "  ", ";"]))
def test_words_of_every_form(names, between):
    assert words(between.join(names)) == words(names) == words(tuple(names)) == words(np.array(names, str)) == names


@settings(max_examples=500, **RELAXED)
@given(st.lists(st.text(max_size=10), max_size=5), st.integers(0, 3))
def test_vocabulary_names(names, parts):
    whole = {f"group {k}": names[k::parts] for k in range(parts)} if parts else {}
    if not names or len(set(names)) < len(names) or any(not n.strip() for n in names): return refused(lambda: AttributeVocab("mine", names), "cannot be used")
    vocab = AttributeVocab("mine", names, whole)
    assert vocab.names == tuple(names) and sorted(i for g in vocab.group_indices() for i in g) == (list(range(len(names))) if parts else [])
    if parts: refused(lambda: AttributeVocab("mine", names, {**whole, "more": [names[0]]}), f"{names[0]!r} lies in 2 groups")
    refused(lambda: AttributeVocab("mine", names, dict(a=[*names, "no such name"])), "no such name")
