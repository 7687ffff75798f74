"""What goes into a batch is one row for each sample, by position, or refused; hypothesis tries 200 forms. Settings are looked at before training."""
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from symbiosis_nb import core, runs
from symbiosis_nb.core import DataError
from symbiosis_nb.data.columns import plain_size
from symbiosis_nb.data.loaders import MIRROR, Field, attribute_dls
from symbiosis_nb.data.pixels import box_view, pixel_store
from symbiosis_nb.data.protocols import enlarge
from symbiosis_nb.data.sources import synthetic_parsing
from symbiosis_nb.data.tables import AttributeTable
from symbiosis_nb.jobs import make_job
from symbiosis_nb.learner import ResumableLearner, attribute_learner
from symbiosis_nb.runs import run
from symbiosis_nb.vocab import BERKELEY, CELEBA, WIDER, AttributeVocab, side_pairs

from helpers import picture_table

RELAXED = dict(deadline=None, derandomize=True, database=None)
N = 12
TABLE = AttributeTable("mine", AttributeVocab("mine", ("a", "b")), [f"{i}.jpg" for i in range(N)], np.zeros((N, 2)), None, ["train"]*8 + ["valid"]*4)
VALUES = np.arange(N*2, dtype=np.float32).reshape(N, 2)
backwards = lambda values: pd.DataFrame(values, index=range(len(values), 0, -1))
FORMS = dict(array=np.asarray, tensor=torch.from_numpy, list=lambda v: v.tolist(), frame=backwards, series=lambda v: backwards(v)[0])

@pytest.fixture(scope="module")
def pictures(tmp_path_factory): return picture_table(tmp_path_factory.mktemp("pictures")/"p", 60)


@settings(max_examples=200, **RELAXED)
@given(st.sampled_from(sorted(FORMS)), st.lists(st.integers(0, N - 1), min_size=1, max_size=8))
def test_fields_are_gathered_by_position(form, rows):
    got = Field("target", FORMS[form](VALUES)).gather(rows)
    assert np.array_equal(got, VALUES[rows, 0] if form == "series" else VALUES[rows])


def test_a_store_of_other_samples_is_refused():
    with pytest.raises(DataError, match="mine has 12 samples, the target store 11 rows"): attribute_dls(TABLE, [Field("target", VALUES[:-1])])
    for ok in (np.ones(N - 1, bool), [2]*N, np.ones((N, 2))):
        with pytest.raises(DataError, match="True or False for each of 12"): attribute_dls(TABLE, [Field("target", VALUES)], ok=ok)
    ok = pd.Series(np.arange(N) % 2 == 0, index=range(N, 0, -1))
    assert attribute_dls(TABLE, [Field("target", VALUES)], ok=ok).valid.dataset == [8, 10]


def test_workers_are_accepted_and_said():
    with pytest.warns(UserWarning, match="num_workers is not needed"): dls = attribute_dls(TABLE, [Field("target", VALUES)], bs=4, num_workers=2)
    assert dls.train.fake_l.num_workers == 0 and len(dls.train) == 2
    with warnings.catch_warnings(): warnings.simplefilter("error"); attribute_dls(TABLE, [Field("target", VALUES)], num_workers=0)


@settings(max_examples=200, **RELAXED)
@given(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none(), st.lists(st.one_of(st.integers(-3, 300), st.floats()), max_size=3)))
def test_sizes_are_two_whole_numbers_or_refused(size):
    good = isinstance(size, list) and len(size) == 2 and all(v > 0 and v != float("inf") and v == int(v) for v in size if v == v) and size == size \
        and not any(v != v for v in size)
    if good: assert plain_size(size) == plain_size(tuple(size)) == plain_size(np.array(size, float)) == tuple(map(int, size))
    else:
        with pytest.raises(DataError, match="give height and width"): plain_size(size)


def test_boxes_in_every_form(pictures, tmp_path):
    paths, boxes = pictures.paths[:3], np.array([[0, 0, 9, 9], [3, 3, 9, 9], [5, 5, 20, 20.]])
    want = pixel_store(paths, (8, 8), box_view(boxes), root=tmp_path).data
    for form in (boxes.tolist(), backwards(boxes), (row for row in boxes.tolist())): assert np.array_equal(pixel_store(paths, (8, 8), box_view(form)).data, want)
    with pytest.raises(DataError, match="3 boxes for 2 pictures"): pixel_store(paths[:2], (8, 8), box_view(boxes))
    with pytest.raises(DataError, match="boxes, row 0"): box_view([[0, 0, 0, 9]])
    with pytest.raises(ValueError, match="'raise' or 'skip'"): pixel_store(paths, (8, 8), on_bad="ignore")


WRONG = [dict(seed=-1), dict(seed="a"), dict(seed=1.5), dict(epochs=0), dict(epochs=-1), dict(epochs=True), dict(bs=0), dict(lr="fast"), dict(lr=float("nan")), dict(lr=-1),
         dict(width=0), dict(limit=0), dict(precision="fp16"), dict(on_bad="ignore"), dict(size=64), dict(size=(0, 4)), dict(out=None), dict(parsing=3)]

@pytest.mark.parametrize("given", WRONG, ids=lambda g: "-".join(f"{k}={v}" for k, v in g.items()))
def test_settings_that_cannot_be_meant(pictures, tmp_path, given):
    with pytest.raises((ValueError, DataError), match=next(iter(given)) if given.get("out", 1) else "not a path"):
        run("avg_pool", pictures, "smoke", **{"out": tmp_path, **given})
    assert not list(tmp_path.iterdir())


def test_tables_that_cannot_be_learnt_from(pictures):
    change = lambda **kwargs: AttributeTable(**{**{f: getattr(pictures, f) for f in "name vocab paths labels known split".split()}, **kwargs})
    with pytest.raises(DataError, match="table is a PosixPath|table is a WindowsPath"): make_job("avg_pool", pictures.paths[0], "smoke")
    with pytest.raises(DataError, match="not one label of the test part"): make_job("avg_pool", change(known=(pictures.split != "test")[:, None]*np.ones((1, 40))), "smoke")
    own = change(vocab=AttributeVocab("mine", ("x y",)), labels=pictures.labels[:, :1], known=None)
    with pytest.raises(DataError, match="which part of the face shows x y.*'x y': 'c'"): make_job("g2s_123", own, "smoke")
    assert make_job("g2s_123", own, "smoke", options=dict(schemes={"x y": "c"})) and make_job("g2s_123", own, "smoke", options=dict(schemes="search"))
    assert len(make_job("avg_pool", change(name="n"*400), "smoke").folder.name) < 120
    with pytest.raises(DataError, match="name, ''"): change(name="")
    leaking = change(identity=np.zeros(60, int))
    assert any("1 people are in more than one part" in n for n in leaking.notes) and leaking.take(slice(None)).notes == leaking.notes
    assert any("1 pictures are in more than one part" in n for n in change(paths=[pictures.paths[0]]*60).notes)
    clean = leaking.but(identity=np.arange(len(leaking)))   # what was torn in another table is not in this one, nor the other way round
    assert clean.notes == [] and clean.but(identity=leaking.identity).notes == leaking.notes and clean.notes == []


def test_a_finished_run_needs_no_lock(pictures, tmp_path, monkeypatch):
    first = run("avg_pool", pictures, "smoke", out=tmp_path, epochs=1)
    def never(folder): raise AssertionError("a finished run was locked")
    monkeypatch.setattr(core, "_open_lock", never)
    again = run("avg_pool", pictures, "smoke", out=tmp_path, epochs=1)
    assert again.news == "read" and again.folder == first.folder


@pytest.mark.parametrize("method", ["ssp", "abstraction"])
def test_helpers_leave_the_process_as_it_was(pictures, tmp_path, monkeypatch, method):
    "The parser's and the generator's training, stopped and whole; what was stopped goes on to the same numbers"
    table, parsing, real, steps = AttributeTable("drawn, synthetic", pictures.vocab, pictures.paths, pictures.labels, None, pictures.split), synthetic_parsing(40), ResumableLearner.one_batch, []
    def stopping(self, i, b):
        steps.append(i)
        if len(steps) == 3: raise KeyboardInterrupt
        return real(self, i, b)
    state = lambda: (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    train = lambda out: run(method, table, "smoke", out=tmp_path/out, parsing=parsing, epochs=1, precision="float32")
    before = state(); monkeypatch.setattr(ResumableLearner, "one_batch", stopping)
    with pytest.raises(KeyboardInterrupt): train("a")
    assert state() == before
    monkeypatch.setattr(ResumableLearner, "one_batch", real)
    resumed, whole = train("a"), train("b")
    assert state() == before and np.array_equal(resumed.arrays["test_last"], whole.arrays["test_last"])


@pytest.mark.parametrize("size", [(8, 6), (40, 32), (80, 64)])
@pytest.mark.parametrize("box, margin", [((11.5, 10, 1, 20), 0), ((10, 11.5, 20, 1), 0), ((36, 3, 9, 9), 0), ((-9, 3, 9, 9), 0), ((60, 3, 9, 9), .1), ((2.6, 3, .3, 9), 0)])
def test_a_box_without_a_pixel_is_no_picture(pictures, tmp_path, size, box, margin):
    "Whatever the size that is asked for: refused by name and box, or counted as unreadable; the others are cut as ever"
    paths, boxes = pictures.paths[:3], np.array([(3.4, 5.6, 20, 18), box, (-4, 30, 30, 40)], float)
    with pytest.raises(DataError, match=f"(?s)1 of 3 images cannot be used.*001.png: .*no whole pixel of its 36x44 lies in the box {box[0]:g}, {box[1]:g}"): pixel_store(paths, size, box_view(boxes, margin), root=tmp_path)
    store = pixel_store(paths, size, box_view(boxes, margin), "skip", root=tmp_path)
    assert store.ok.tolist() == [True, False, True]
    if margin: return
    for i, edges in ((0, (3, 6, 23, 24)), (2, (0, 30, 26, 44))):
        assert np.array_equal(store[[i]][0], np.asarray(Image.open(paths[i]).crop(edges).resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=3.)))


def test_a_frame_of_boxes_without_boxes_is_said(pictures, tmp_path):
    with pytest.raises(DataError, match="there are no boxes, which pictures of frame 'box' are cut by"): run("avg_pool", pictures.but(frame="box"), "smoke", out=tmp_path)


SIDED = ("left_arm_up", "hat", "right_arm_up")

def sided_table(folder, names=SIDED, n=24):
    "Bright at the left where the first attribute holds, at the right where the third does"
    y = np.random.default_rng(0).integers(0, 2, (n, 3))
    for i in range(n):
        pixels = np.zeros((16, 16, 3), np.uint8); pixels[:, :4] += np.uint8(200*y[i, 0]); pixels[:, 12:] += np.uint8(200*y[i, 2]); pixels[0, 8] = i
        Image.fromarray(pixels).save(folder/f"{i}.png")
    return AttributeTable("mine", AttributeVocab("mine", names), [folder/f"{i}.png" for i in range(n)], y, y > -1, ["train"]*16 + ["valid"]*8)

@pytest.mark.parametrize("names, trade", [(SIDED, True), (("LeftArm", "hat", "RightArm"), True), (("armL", "x", "armR"), True), (("bright", "hat", "upright"), False), (("left_arm", "hat", "right_leg"), False)])
def test_attributes_of_two_sides_trade_places_in_a_mirror(tmp_path, names, trade):
    table = sided_table(tmp_path, names)
    dls = attribute_dls(table, [Field("image", pixel_store(table, (16, 16), root=tmp_path/"stores"))], 16, MIRROR)
    wrong = 0
    for _ in range(4):
        x, y = dls.train.one_batch()
        at = torch.stack([x[:, 0, 8, 1], x[:, 0, 8, 14]], 1) > 0
        wrong += int((at != (y[:, [0, 2]] > 0)).any())
    assert (wrong == 0) == trade
    x, y = dls.valid.one_batch()
    assert ((torch.stack([x[:, 0, 8, 1], x[:, 0, 8, 14]], 1) > 0) == (y[:, [0, 2]] > 0)).all()


def test_mirrored_copies_trade_sides_too(tmp_path):
    big = enlarge(sided_table(tmp_path), 3, out=tmp_path/"copies")
    seen = np.array([[np.asarray(big.open(i))[8, k, 0] > 100 for k in (1, 14)] for i in range(len(big))])
    assert (seen == big.labels[:, [0, 2]]).all() and (big.labels[24:] != np.repeat(big.labels[:16], 3, 0)).any()


def test_averages_over_mirror_images_trade_sides_too(tmp_path):
    table = sided_table(tmp_path)
    dls = attribute_dls(table, [Field("image", pixel_store(table, (16, 16), root=tmp_path/"stores"))], 8, None)
    class Looks(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.ones(1))
        def forward(self, x): return self.w*torch.stack([x[:, 0, 8, 1], 0*x[:, 0, 8, 1], x[:, 0, 8, 14]], 1)*9
    found, y = attribute_learner(dls, Looks(), precision="float32").tta()
    assert ((found[:, [0, 2]] > .5) == (y[:, [0, 2]] > 0)).all()


def test_no_official_attribute_has_a_side():
    "What is trained on the official sets, and on drawn ones, stays what it was"
    for vocab in (CELEBA, WIDER, BERKELEY): assert side_pairs(vocab.names) == ()
    assert side_pairs(("left_eye_closed", "right_eye_closed", "hat")) == ((0, 1),)
