"At the size of CelebA: fast forms give what the plain ones give, and what was computed is not computed again"
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from symbiosis_nb import metrics as M, stats


def literal_average_precision(scores, labels, known, weight):
    "One attribute as the definition reads: at every positive, the share of positives among all that rank as high"
    out = []
    for w in np.atleast_2d(weight).astype(float)*known:
        at = scores[None] >= scores[:, None]                       # row i: who ranks as high as i
        seen, hits = at @ w, at @ (w*labels)
        precision = np.divide(hits, seen, out=np.zeros_like(seen), where=seen > 0)
        total = (w*labels).sum()
        out.append((w*labels*precision).sum()/total if total > 0 else np.nan)
    return np.array(out)


def sorted_average_precision(scores, labels, known, weight):
    "The form that this library had before, for arrays of real size: one gather and two cumulated sums per replicate"
    rows = np.flatnonzero(known > 0)
    order = rows[np.argsort(-scores[rows], kind="stable")]
    s, y, w = scores[order], labels[order], weight[:, order].astype(float)
    last = np.searchsorted(-s, -s, side="right") - 1
    hits, seen = np.cumsum(w*y, 1), np.cumsum(w, 1)
    precision = np.divide(hits[:, last], seen[:, last], out=np.zeros_like(seen), where=seen[:, last] > 0)
    return (w*y*precision).sum(1)/hits[:, -1]


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0, 1, 6]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_average_precision_is_its_definition(seed, n, digits, counts):
    "With ties, unknown labels, images that no replicate draws, fractional weights, and attributes without a positive"
    rng = np.random.default_rng(seed)
    s, y, k = rng.normal(size=(n, 3)).round(digits), (rng.random((n, 3)) < .4).astype(float), rng.random((n, 3)) < .8
    w = rng.integers(0, 3, (4, n)) if counts else rng.random((4, n))*(rng.random((4, n)) < .7)
    ours = M.average_precision(s, y, k, weight=w)
    for j in range(3):
        np.testing.assert_allclose(ours[:, j], literal_average_precision(s[:, j], y[:, j], k[:, j], w), atol=1e-9)


def test_average_precision_at_the_size_of_a_test_part():
    rng = np.random.default_rng(0)
    y = (rng.random((19_962, 2)) < (.02, .6)).astype(float)
    s = (rng.normal(size=y.shape) + 2*y).astype(np.float32).round(3)   # with ties
    w = stats.cluster_weights(rng.integers(0, 1000, len(y)), len(y), 40)
    old = np.stack([sorted_average_precision(s[:, j].astype(float), y[:, j], np.ones(len(y)), w) for j in range(2)], 1)
    np.testing.assert_allclose(stats.bootstrap(M.average_precision, s, y, None, w), old, atol=1e-9)


def plain_thresholds(scores, labels, known, steps=101):
    "Every threshold tried on every image"
    grid = np.vstack([scores.min(0) - 1, np.quantile(scores, np.linspace(0, 1, steps), axis=0), np.zeros(scores.shape[1])])   # the first: yes to all
    best = {}
    for name, metric in M.TUNED.items():
        values = np.nan_to_num(np.stack([metric(scores, labels, known, threshold=g) for g in grid]), nan=-1)
        best[name] = np.where(values.max(0) > values[-1] + 1e-12, grid[values.argmax(0), np.arange(scores.shape[1])], 0.)
    return best


@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0, 1, 6]))
@settings(max_examples=60, deadline=None)
def test_thresholds_from_one_sort_are_those_of_trying_all(seed, n, digits):
    rng = np.random.default_rng(seed)
    s, y, k = rng.normal(size=(n, 4)).round(digits), (rng.random((n, 4)) < (.5, .1, 0, 1)).astype(float), rng.random((n, 4)) < .8
    ours, plain = M.best_thresholds(s, y, k), plain_thresholds(s, y, k)
    for name in M.TUNED: np.testing.assert_array_equal(ours[name], plain[name])


def test_a_run_is_asked_once(tmp_path, monkeypatch):
    "A second card of the same run reads its replicates and frames; other predictions are computed"
    import pandas as pd
    from symbiosis_nb import computed
    from symbiosis_nb.kept import Run, keep, score
    from symbiosis_nb.vocab import AttributeVocab
    rng, vocab = np.random.default_rng(0), AttributeVocab("hats", ("Cap", "Crown"))
    targets = rng.integers(0, 2, (50, 2)).astype(np.float32)
    arrays = dict(test_targets=targets, test_selected=rng.normal(size=(50, 2)), test_last=rng.normal(size=(50, 2)))
    keep(tmp_path/"a", dict(method="mine", attributes=["Cap", "Crown"]), {}, score(arrays, vocab), pd.DataFrame(), predictions=arrays)
    weights = stats.cluster_weights(None, 50, 30)
    first = computed.kept_replicates(Run(tmp_path/"a"), M.accuracy, weights), computed.kept_score(Run(tmp_path/"a"), vocab)
    def refuse(*args, **kwargs): raise AssertionError("computed again")
    with monkeypatch.context() as m:
        m.setattr(stats, "bootstrap", refuse); m.setattr(computed, "score", refuse)
        again = computed.kept_replicates(Run(tmp_path/"a"), M.accuracy, weights), computed.kept_score(Run(tmp_path/"a"), vocab)
        changed = Run(tmp_path/"a"); changed.arrays["test_selected"] += 1
        with pytest.raises(AssertionError, match="computed again"): computed.kept_replicates(changed, M.accuracy, weights)
        m.setattr(computed, "metric_code", lambda: "another")
        with pytest.raises(AssertionError, match="computed again"): computed.kept_score(Run(tmp_path/"a"), vocab)
    np.testing.assert_array_equal(first[0], again[0]); pd.testing.assert_frame_equal(first[1], again[1])


def test_nothing_is_kept_beside_what_is_no_folder(tmp_path, monkeypatch):
    "A run in memory (an average of several), and a folder that cannot be written to, are computed every time"
    from symbiosis_nb import computed
    r = type("R", (), dict(folder=tmp_path/"no such"))()
    assert computed.beside(r, "answer", [1], lambda: dict(a=np.ones(1)), "00")["a"] == 1 and not (tmp_path/"no such").exists()
    (tmp_path/"done.json").write_text("{}"); (tmp_path/"computed").write_text("a file where the folder would be")
    assert computed.beside(type("R", (), dict(folder=tmp_path))(), "answer", [1], lambda: dict(a=np.ones(1)), "00")["a"] == 1


@pytest.fixture(scope="module")
def aligned_faces():
    from symbiosis_nb.data.sources import open_faces
    return open_faces(profile="smoke")


def paper_job(method, table, **more):
    from symbiosis_nb.plan import job_of
    settings = dict(size=(224, 224), backbone="small", width=.25, weights="scratch", limit=24, iterations=2, bs=8) | more
    return job_of(method, table, "paper", **settings)


def test_all_methods_of_real_size_share_one_store(aligned_faces, tmp_path, monkeypatch):
    "Whole pictures of three sizes and eight crops: one folder of pixels; the small profiles keep theirs"
    monkeypatch.setenv("SYMBIOSIS_CACHE", str(tmp_path))
    jobs = [paper_job("avg_pool", aligned_faces), paper_job("avg_pool", aligned_faces, size=(299, 299)), paper_job("blan", aligned_faces, size=(256, 256)),
            *(paper_job("g2s_1", aligned_faces, options=dict(scheme=s)) for s in "abcdefgh")]
    for job in jobs: assert job.need.pictures(job).shape[:2] == job.need.stored(job) and job.config()["native"] == [218, 178]
    assert len(list((tmp_path/"stores").glob("pixels-*"))) == 1
    for job in (paper_job("avg_pool", aligned_faces, size=(80, 64)), paper_job("avg_pool", aligned_faces, size=(218, 178))): assert "native" not in job.config()
    from symbiosis_nb.plan import job_of
    assert "native" not in job_of("avg_pool", aligned_faces, "smoke").config() and "native" not in job_of("g2s_1", aligned_faces, "demo").config()
    assert "native" not in paper_job("g2s_1", aligned_faces, options=dict(border="zero")).config()   # the native picture has no black border


def crop_of(method, scheme, table, sized):
    "Measured batch of a job: sampled from the native store, and from a store of its own"
    from symbiosis_nb.data.loaders import Field, transform
    from symbiosis_nb.data.pixels import pixel_store
    from symbiosis_nb.needs.crops import face_view
    job = paper_job(method, table, **(dict(options=dict(scheme=scheme)) if scheme else {}))
    size = job.need.stored(job)
    if sized: field, = job.need.fields(job, job.need.pictures(job))
    else:
        view = [face_view(job.table, scheme, size[0])] if scheme else []
        field, = job.need.fields(job, pixel_store(job.table, size, *view))
    return lambda how: transform(field, field.gather([0, 1, 2]), how)


@pytest.mark.parametrize("method, scheme", [("avg_pool", ""), *(("g2s_1", s) for s in "abcdefgh")])
def test_a_sampled_picture_is_the_one_that_was_stored(aligned_faces, method, scheme):
    "When measuring, but for a grey level of rounding; moved, but for the second interpolation"
    import torch
    from symbiosis_nb.data.loaders import PATCHES
    native, own = (crop_of(method, scheme, aligned_faces, sized) for sized in (True, False))
    grey = lambda a, b: ((a - b).abs()*.225*255)
    assert native(None).shape == own(None).shape and grey(native(None), own(None)).mean() < .6
    torch.manual_seed(0); how = PATCHES.draw(3)
    assert grey(native(how), own(how)).mean() < 1.5 and (how["mirror"].any() or True)
    assert grey(native(how), native(None)).mean() > 3   # it did move


def test_a_run_from_the_native_store(aligned_faces, tmp_path):
    from symbiosis_nb.runs import Predictor, run
    how = dict(size=(224, 224), backbone="small", width=.25, weights="scratch", limit=24, iterations=2, bs=8, out=tmp_path, precision="float32")
    r = run("avg_pool", aligned_faces, "paper", **how)
    assert r.config["native"] == [218, 178] and run("avg_pool", aligned_faces, "paper", **how).news == "read"
    row = list(aligned_faces.paths[i].name for i in range(len(aligned_faces))).index(r.arrays["test_names"][0])
    says = Predictor.load(r.folder)(aligned_faces.paths[row]).iloc[:, 0].to_numpy()
    np.testing.assert_allclose(says, 1/(1 + np.exp(-r.arrays["test_selected"][0])), atol=5e-3)


def test_boxes_are_drawn_as_they_were_stored(aligned_faces):
    import torch
    from symbiosis_nb.models.pooling import landmark_masks
    from symbiosis_nb.needs.boxes import box_masks
    store, rows = box_masks(aligned_faces, (109, 89)).store, [3, 0, 50]
    old = [(landmark_masks(torch.tensor(aligned_faces.landmarks[r][None]).float(), (109, 89), (218, 178), side=20)[0]*255).round().byte() for r in rows]
    assert (store[rows] == torch.stack(old)).all() and len(store) == len(aligned_faces) and store.shape == (16, 109, 89)
