"Means that keep their replicates: against a bootstrap written out by hand, over seeds, over two data sets"
import numpy as np
import pytest

from symbiosis_nb import metrics, stats
from symbiosis_nb.contrasts import Mean, claims, mean_scores


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    y, known, who = (rng.random((120, 4)) < .4).astype(float), rng.random((120, 4)) < .9, rng.integers(0, 40, 120)
    return {(n, s): (rng.normal(size=y.shape) + g*(2*y - 1), y, known) for s in (0, 1) for n, g in dict(a=1., b=.3).items()}, who


@pytest.mark.parametrize("metric, f", [("AP", metrics.average_precision), ("accuracy", metrics.accuracy), ("balanced_accuracy", metrics.balanced_accuracy)])
def test_difference_of_two_groups_by_hand(case, metric, f):
    predictions, who = case
    first, rest = (mean_scores(predictions, who, metric, at, replicates=40) for at in ([0, 2], [1, 3]))
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


def test_two_data_sets_are_drawn_apart(case):
    predictions, who = case
    same, other = (mean_scores(predictions, who, "accuracy", draw=d, replicates=300) for d in (0, 1))
    a, b = (m["a"].by_seed[0][1] for m in (same, other))
    assert abs(np.corrcoef(a, b)[0, 1]) < .2
    twice = (same["a"] - other["a"]).summary()
    assert twice["difference"] == 0 and twice["low"] < 0 < twice["high"]   # paired, it would be exactly zero


def test_verdicts_are_those_of_stats(case):
    predictions, who = case
    of = mean_scores(predictions, who, "accuracy")
    frame = claims([("a beats b", of["a"] - of["b"]), ("b beats a", of["b"] - of["a"]), ("equal", of["a"] - of["a"], "about equal")], metric="accuracy")
    assert frame.verdict.tolist() == ["holds", "does not hold", "holds"] and list(frame) == ["claim", "difference", "interval", "seeds", "verdict", "metric"]
    with pytest.raises(ValueError, match="no seed in common"): of["a"] - Mean({5: of["a"].by_seed[0]})
