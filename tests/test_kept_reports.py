"Predictions lie beside the kept reports: what is printed can be computed from them, without pictures, weights or a GPU"
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from symbiosis_nb.kept import Run, kept_rows, kept_runs, mixed_order, score
from symbiosis_nb.recipes import make_profile
from symbiosis_nb.vocab import FACE7, HELEN

REPORTS = Path(__file__).parents[1]/"reports"
KEPT = sorted(p.parent for p in REPORTS.glob("*/predictions/*/done.json"))


def test_some_are_kept(): assert KEPT


@pytest.mark.parametrize("folder", KEPT, ids=lambda p: f"{p.parents[1].name}-{p.name}")
def test_scores_can_be_computed_again(folder):
    "From logits of three digits: every mean within a hundredth of a point of what the run itself wrote"
    r = Run(folder)
    again = score(r.arrays, r.vocab)[["accuracy", "AP", "balanced_accuracy"]]
    np.testing.assert_allclose(again.mean(), r.scores[again.columns].mean(), atol=1e-4)


@pytest.mark.parametrize("folder", KEPT, ids=lambda p: f"{p.parents[1].name}-{p.name}")
def test_no_weights_are_beside(folder):
    there = {p.name for p in folder.iterdir()}   # `computed` is what findings computed here; git ignores it
    assert there - {"readings", "computed"} == {"config.json", "done.json", "log.csv", "scores.parquet", "predictions.npz"}
    assert all(p.suffix == ".npz" and p.stat().st_size < 3_000_000 for p in folder.glob("readings/*"))   # numbers, and names of regions
    for file in folder.glob("readings/*.npz"):
        words = {w for v in Run(folder).arrays_of(f"readings/{file.stem}").values() if v.dtype.kind in "USO" for w in v.ravel()}
        assert words <= {*HELEN.names, *FACE7.names}
        rest = {k: v for k, v in Run(folder).arrays_of(f"readings/{file.stem}").items() if v.dtype.kind not in "USO" and not k.startswith(("test_", "valid_"))}
        assert all(v.ndim < 3 or k == "maps" for k, v in rest.items()) and all(v.min() >= 0 and v.max() <= 1 for v in rest.values())   # shares and maps, no kernels


@pytest.mark.parametrize("folder", KEPT, ids=lambda p: f"{p.parents[1].name}-{p.name}")
def test_nobody_is_named(folder):
    "No file names; rows in an order of their own, people numbered as they come in it: who has not the labels cannot say whose a row is"
    arrays = Run(folder).arrays_of("predictions")
    assert not [k for k, v in arrays.items() if v.dtype.kind in "USO"]
    for split in ("valid", "test"):
        assert np.array_equal(mixed_order(arrays[f"{split}_targets"]), np.arange(len(arrays[f"{split}_targets"])))
    seen = arrays["test_identity"]
    assert np.array_equal(pd.factorize(seen)[0], seen)


@pytest.mark.parametrize("report", sorted({p.parents[1] for p in KEPT}), ids=lambda p: p.name)
def test_every_row_of_a_report_has_its_predictions(report):
    "In its own folder, or in that of a report which shares the run. A row says what the run wrote itself or, where it was adopted, what its logits of three digits give"
    rows = [row for row in kept_rows(report).itertuples() if " + " not in row.folder]   # an average is made of its parts
    for row, r in zip(rows, kept_runs(report)):
        own = r.scores.AP.mean() == pytest.approx(row.AP, abs=1e-5)
        assert own or score(r.arrays, r.vocab).AP.mean() == pytest.approx(row.AP, abs=1e-5)
        assert r.done["fingerprint"]["commit"] == row.commit


@pytest.mark.parametrize("name", ["lfwa", "celeba_46k"])
def test_the_pretrained_trunks_rate_is_one_that_validation_would_choose(name):
    "Half a point is what two seeds differ by; the rate before lost 1.5 to 2.4 on LFWA"
    tried, used = pd.read_csv(REPORTS/f"tuning_{name}.csv").set_index("method"), make_profile("onecycle").recipe.lr
    rates = tried.filter(like="rate ")
    lost = rates.max(axis=1) - rates[f"rate {used:g}"]
    assert (lost < .5).all() and len(rates.columns) == 3
    if name == "lfwa": assert (rates.max(axis=1) - rates["rate 0.002"] > 1.5).all()
