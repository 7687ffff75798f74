"""Statistics, metrics and losses beside values worked out by hand, by scipy or by scikit-learn.

Each test was written because a plausible slip in the code (a label that is not known counted, two quantiles exchanged, a mean over the wrong
axis) changed a number and nothing noticed."""
from functools import partial
from itertools import product

import numpy as np
import pytest
import sklearn.metrics as skm
import torch
import torch.nn.functional as F
from scipy.stats import norm, permutation_test, t

from symbiosis_nb import losses, metrics as M, stats
from symbiosis_nb.vocab import AttributeVocab

rng = np.random.default_rng(0)
close = partial(np.testing.assert_allclose, rtol=1e-9)


# statistics

def test_holm_counts_the_tests_that_were_made():
    "An attribute without a value is no test: two remain, the smaller p is doubled"
    close(stats.holm([.01, np.nan, .03]), [.02, np.nan, .03])
    close(stats.holm([.04, .03, .02, .01]), [.06, .06, .06, .04])        # 4 x .01, 3 x .02; then not below their predecessors


def test_mcnemar_leaves_unknown_labels_out():
    "Image 0 tells the methods apart, but its label is not known"
    a, b = np.array([[1], [1], [1], [1], [0]]), np.array([[0], [0], [0], [0], [1]])
    known = np.array([[0], [1], [1], [1], [1]])
    test = stats.mcnemar(a, b, known).iloc[0]
    assert (test.only_a, test.only_b) == (3, 1)
    close(test.p, 2*(1 + 4)/16)                                          # three or more of four, both sides


def test_which_differ_is_about_right_answers_after_holm():
    "Ten attributes; the first method is right where labels are 0, so saying less is better; one differs in 6 of 6 images, p = .031"
    labels = np.zeros((6, 10)); known = np.ones((6, 10))
    a, b = -np.ones((6, 10)), -np.ones((6, 10)); b[:, 0] = 1             # b says yes, and is wrong
    assert not stats.which_differ(a, b, labels, known).any()             # 10 x .031 is no evidence
    assert stats.which_differ(a[:, :1], b[:, :1], labels[:, :1], known[:, :1]).tolist() == [1]
    assert stats.which_differ(b[:, :1], a[:, :1], labels[:, :1], known[:, :1]).tolist() == [-1]


def test_accuracy_gain_is_a_share_of_the_known_labels():
    a, b = np.array([[1., 1, 1, 1]]), np.array([[-1., -1, 1, 1]])
    close(stats.accuracy_gain(a, b, np.ones((1, 4)), np.array([[1, 1, 0, 0]])), [1])
    close(stats.accuracy_gain(a, b, np.array([[1, 0, 1, 1]])), [0])
    close(stats.accuracy_gain(a, b, np.ones((1, 4)), np.zeros((1, 4))), [0])


def test_what_is_tested_of_accuracy_is_the_difference_that_is_shown():
    "With unknown labels a mean over attributes is no mean over images: one image alone knows the second attribute, and it decides half"
    a, b, y = np.array([[1., 1.]]*4), np.array([[1., -1.], [-1., 1.], [1., 1.], [1., 1.]]), np.ones((4, 2))
    known = np.array([[1, 1], [1, 0], [1, 0], [1, 0]])
    gain = stats.accuracy_gain(a, b, y, known)
    close(gain, [2, .5, 0, 0]); assert gain.mean() == .5*(1 + .25)   # 4/1 and 4/4 of an image, over two attributes
    rng = np.random.default_rng(0)
    a, b, y, known = rng.normal(size=(50, 6)), rng.normal(size=(50, 6)), rng.integers(0, 2, (50, 6)), rng.random((50, 6)) < .4
    known[:, 5] = False
    close(stats.accuracy_gain(a, b, y, known).mean(), np.nanmean(M.accuracy(a, y, known) - M.accuracy(b, y, known)))


def test_the_permutation_test_turns_people_not_images():
    "Eight people of four images: 2**8 signs, counted out. By images the same gains would be p = 2**-31"
    gain, who = np.ones(32), np.repeat(np.arange(8), 4)
    exact = permutation_test((gain.reshape(8, 4).sum(1),), np.sum, permutation_type="samples", alternative="two-sided", n_resamples=np.inf).pvalue
    close(exact, 2/2**8)
    p = stats.paired_permutation(gain, who, 20_000)
    assert abs(p - exact) < .003 and stats.paired_permutation(gain, None, 20_000) == 1/20_001   # never 0
    nobody = np.where(who == 0, -1, who)                                 # unknown people are one each, not one person
    exact = np.mean([abs(sum(s[:4]) + 4*sum(s[4:])) >= 32 for s in product((-1, 1), repeat=11)])
    assert abs(stats.paired_permutation(gain, nobody, 20_000) - exact) < .003


@pytest.mark.parametrize("level,power", [(.05, .8), (.05, .5), (.01, .9)])
def test_the_smallest_gap_is_found_as_frequently_as_it_says(level, power):
    "With a standard error of 1 and that true difference, a two-sided test at the level rejects so frequently"
    drawn = np.random.default_rng(1).normal(size=200_000)
    gap = stats.smallest_gap(drawn, level, power)
    found = 1 - norm.cdf(norm.ppf(1 - level/2) - gap)
    assert abs(found - power) < .01


def test_an_interval_has_the_level_it_says_and_its_bias_taken_out():
    drawn = np.arange(1001)/10                                           # 0 to 100, mean 50
    close(stats.interval(drawn), (2.5, 97.5)); close(stats.interval(drawn, level=.9), (5, 95))
    close(stats.interval(drawn, 40.), (-7.5, 87.5))                      # measured 40: the bootstrap is 10 too high
    close(np.ravel(stats.simultaneous(np.array([40.]), drawn[:, None])), (-7.5, 87.5))


def test_simultaneous_intervals_are_as_wide_as_the_worst_of_them():
    "Two independent values: each interval at level sqrt(.95)"
    drawn = np.random.default_rng(2).normal(size=(200_000, 2))*[1, 3]
    low, high = stats.simultaneous(np.zeros(2), drawn)
    close((high - low)/2, norm.ppf((1 + .95**.5)/2)*np.array([1, 3]), rtol=.01)


@pytest.mark.parametrize("claim,low,high,said", [
    ("not better", -.01, .001, "holds"), ("not better", .0005, .001, "does not hold"), ("not better", -.01, .01, "cannot tell"),
    ("about equal", -.001, .001, "holds"), ("about equal", .0005, .0015, "holds"), ("about equal", .0005, .003, "cannot tell"),
    ("about equal", .0025, .003, "does not hold"), ("about equal", -.003, -.0025, "does not hold"), ("about equal", -.003, -.001, "cannot tell"),
    ("greater", .001, .01, "holds"), ("greater", -.01, -.001, "does not hold"), ("greater", 0., .01, "cannot tell")])
def test_verdicts_by_their_rules(claim, low, high, said):
    assert stats.verdict(low, high, claim, margin=stats.MARGINS["accuracy"]) == said


# metrics

y = rng.integers(0, 2, (200, 3)); s = rng.normal(size=(200, 3)) + y; k = rng.random((200, 3)) < .6
VOCAB = AttributeVocab("three", ("bald", "fringe", "male"), {"hair": ("bald", "fringe"), "who": ("male",)}, contradictions=((("bald", 1), ("fringe", 1)), (("male", 0), ("bald", 1))))
each = pytest.mark.parametrize("j", range(3))


@each
def test_calibration_counts_known_labels_alone(j):
    p, found = 1/(1 + np.exp(-s[k[:, j], j])), M.calibration(s, y, k, bins=10)
    true = y[k[:, j], j]
    close(found["brier"][j], skm.brier_score_loss(true, p))
    bins = np.minimum((p*10).astype(int), 9)
    off = [abs(p[bins == b].mean() - true[bins == b].mean())*(bins == b).mean() for b in range(10) if (bins == b).any()]
    close(found["ece"][j], sum(off))


def test_the_reliability_curve_pools_known_labels():
    found = M.calibration(s, y, k, bins=10)
    p, true = 1/(1 + np.exp(-s[k])), y[k]
    bins = np.minimum((p*10).astype(int), 9)
    assert found["count"].tolist() == np.bincount(bins, minlength=10).tolist()
    close(found["confidence"], [p[bins == b].mean() for b in range(10)]); close(found["frequency"], [true[bins == b].mean() for b in range(10)])


@each
def test_a_constant_answer_is_measured_on_known_labels(j):
    "The majority is the training part's; the prevalence, which is the floor of average precision, the test part's"
    train = np.array([.9, .1, np.nan])
    found = M.reference_frame(y, k, train, VOCAB).iloc[j]
    true = y[k[:, j], j]
    close(found.AP, true.mean()); close(found.accuracy, np.mean(true == (train[j] > .5)))


def test_contradictions_need_both_labels_known_and_their_own_values():
    positive = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
    known = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]], bool)
    close(M.contradictions(positive, VOCAB, known).share, [1/3, 1/3])    # image 1 does not count; male=0 with bald=1: image 0
    close(M.contradictions(positive, VOCAB).share, [2/4, 2/4])


def test_means_of_groups_and_of_attributes():
    "Groups have not the same size: the mean over all is over attributes"
    frame = M.score_frame(s, y, k, VOCAB)
    found = M.group_means(frame, VOCAB).accuracy
    right = [np.mean((s[k[:, j], j] > 0) == y[k[:, j], j]) for j in range(3)]
    close(found[["hair", "who", "mean"]], [np.mean(right[:2]), right[2], np.mean(right)])


def test_instance_scores_are_scikit_learns_where_all_is_known():
    "Images without a positive do not count; one that says nothing has precision 0"
    some = y.any(1)
    found = M.instance_scores(s, y)
    said = (s > 0).astype(int)
    close([found["precision"], found["recall"]], skm.precision_recall_fscore_support(y[some], said[some], average="samples", zero_division=0)[:2])
    two = M.instance_scores([[1., -1], [-1, -1], [1, 1]], [[1, 1], [1, 0], [0, 0]])
    close([two["precision"], two["recall"]], [(1 + 0)/2, (.5 + 0)/2])
    close(two["F1"], M.f1(two["precision"], two["recall"])); assert M.f1(0., 0.) == 0
    unknown = M.instance_scores([[1., 1]], [[1, 0]], [[1, 0]])           # the wrong answer is to a label that nobody knows
    close([unknown["precision"], unknown["recall"]], [1, 1])


def test_a_threshold_is_tuned_only_where_it_gains():
    "Anything between -1 and 1 parts these: 0 stays. Where negatives lie above 0, the threshold goes above them"
    scores, labels = np.array([[-2.], [-1], [1], [2]]), np.array([[0], [0], [1], [1]])
    assert M.best_thresholds(scores, labels)["accuracy"].tolist() == [0]
    moved = M.best_thresholds(scores + 3, labels)["accuracy"]
    assert 2 <= moved[0] < 4 and M.accuracy(scores + 3, labels, threshold=moved)[0] == 1
    known = np.array([[1], [1], [0], [0]])                               # no positive is known: for balanced accuracy there is nothing to tune
    assert M.best_thresholds(scores + 3, labels, known)["balanced_accuracy"].tolist() == [0]


def test_parsing_scores_by_class():
    "Rows are the truth: recall is by row, and the mean without background leaves the first class out"
    truth, said = np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 1, 1, 0, 2, 1])
    frame = M.parsing_frame(M.confusion(truth, said, 3), ["background", "skin", "hair"])
    close(frame.accuracy, skm.recall_score(truth, said, average=None))
    close(frame.IoU, skm.jaccard_score(truth, said, average=None))
    means = M.parsing_means(frame)
    close([means["class_accuracy"], means["class_accuracy_no_background"]], [(.75 + .5 + .5)/3, .5])
    close([means["mean_IoU"], means["mean_IoU_no_background"]], [frame.IoU.mean(), frame.IoU.iloc[1:].mean()])


# losses, of numbers in float64

logit = torch.tensor([[2., -1, .5], [0., 3, -2]], dtype=torch.float64)
target = torch.tensor([[1., 0, torch.nan], [0., torch.nan, 1]], dtype=torch.float64)
terms = {(i, j): F.softplus(logit[i, j]*(1 - 2*target[i, j])).item() for i in range(2) for j in range(3) if not target[i, j].isnan()}


def test_cross_entropy_by_hand():
    "Four known labels; as a sum it is over attributes, and a mean over both pictures of the batch"
    close(losses.masked_bce(logit, target).item(), sum(terms.values())/4, rtol=1e-6)
    close(losses.masked_bce(logit, target, reduction="sum").item(), sum(terms.values())/2, rtol=1e-6)
    whole = torch.cat([logit, logit[:1]]), torch.cat([target, torch.full((1, 3), torch.nan)])
    close(losses.masked_bce(*whole, reduction="sum").item(), sum(terms.values())/3, rtol=1e-6)   # a picture without labels is one of the batch


def test_weights_go_to_their_own_side():
    positive, negative = torch.tensor([2., 3, 5]), torch.tensor([7., 11, 13])
    want = sum(v*(positive if target[i, j] > .5 else negative)[j].item() for (i, j), v in terms.items())/4
    close(losses.masked_bce(logit, target, (positive, negative)).item(), want, rtol=1e-6)


def test_euclidean_loss_leaves_unknown_labels_out():
    close(losses.euclidean(logit, target).item(), .5*((2 - 1)**2 + (-1 + 1)**2 + (0 + 1)**2 + (-2 - 1)**2)/2)


def test_parsing_loss_at_either_size():
    "Maps are enlarged as torch does without aligned corners, or labels are taken at the nearest place; 255 does not count"
    maps, labels = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    labels[0, :2] = 255
    large = F.interpolate(maps, scale_factor=2, mode="bilinear")
    chances, where = large.log_softmax(1).permute(0, 2, 3, 1), labels != 255
    close(losses.parsing_ce(maps, labels).item(), -chances[where].gather(1, labels[where][:, None]).mean().item(), rtol=1e-5)
    small = labels[:, ::2, ::2]; where = small != 255
    chances = maps.log_softmax(1).permute(0, 2, 3, 1)
    close(losses.parsing_ce(maps, labels, "labels").item(), -chances[where].gather(1, small[where][:, None]).mean().item(), rtol=1e-5)


def test_the_joint_loss_passes_its_weights_on():
    maps, labels, weights = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8)), (torch.tensor([2., 3, 5]), torch.tensor([7., 11, 13]))
    found = losses.JointLoss(.25, "labels", weights)((logit, maps), target, labels)
    close(found.item(), (losses.masked_bce(logit, target, weights) + .25*losses.parsing_ce(maps, labels, "labels")).item(), rtol=1e-6)


@pytest.mark.parametrize("rows,seeds,spread,most", [(10, 2, .6, .09), (2, 3, .6, .09), (1, 5, .35, .09), (2, 2, .6, .15)])
def test_equal_rows_are_told_apart_as_rarely_as_95_percent_says(rows, seeds, spread, most):
    "Two equal means whose seeds lie apart: drawn with replacement, two seeds of them called 29 pairs of 100 different, three 18"
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(300):
        people, drawn = rng.normal(0, .15), rng.normal(0, .15, 400)
        one = lambda of: {s: (v, v + of*drawn) for s, v in enumerate(of*people + rng.normal(0, spread, seeds))}
        low, high = stats.with_seeds({r: stats.Mean(one(r == 0)) for r in range(rows)})[0].interval
        wrong += not low <= 0 <= high
    assert wrong/300 < most


def test_a_row_with_one_seed_learns_from_those_with_several():
    "Rows plus seeds fitted by hand: what a seed does to all alike is in no difference, what it does to one row is"
    alike, people = np.array([.1, -.1]), np.zeros(20_000)
    own = {"a": .02, "b": -.02, "c": .01, "d": -.01}
    rows = {r: stats.Mean({s: (.5 + alike[s] + d*(1 - 2*s), people + .5 + alike[s] + d*(1 - 2*s)) for s in (0, 1)}) for r, d in own.items()}
    common, apart, free = stats.seed_spread(rows)
    left = np.array([d*(1 - 2*s) for d in own.values() for s in (0, 1)])   # their means over rows and over seeds are 0
    close(apart, np.sqrt((left**2).sum()/3)); assert free == 3
    total = np.array([alike[s] + d*(1 - 2*s) for d in own.values() for s in (0, 1)])
    close(common, np.sqrt((total**2).sum()/4 - apart**2))
    told = stats.with_seeds(rows | {"e": stats.Mean({0: (.5, people + .5)})})
    reach = lambda m: np.ptp(m.interval)/2
    assert abs(reach(told["e"] - told["a"]) - t.ppf(.975, 4)*apart*2**.5) < .002 and reach(told["e"] - told["e"]) == 0
    assert abs(reach(told["a"] - told["b"]) - t.ppf(.975, 4)*apart) < .002   # two seeds each: over the root of two
    alone = stats.with_seeds({"e": rows["a"], "f": rows["a"]})
    assert stats.seed_spread(alone) is not None and stats.seed_spread({"e": told["e"]}) is None   # one run in two rows counts once


def test_nothing_is_said_of_what_is_not_defined():
    assert stats.verdict(np.nan, np.nan, gap=np.nan) == "cannot tell"
    y, known = np.array([[0., 1, 1], [0, 0, 1], [0, 1, 1]]), np.ones((3, 3))
    floor = M.reference_frame(y, known, [.5, .5, .5], AttributeVocab("three", ("nobody", "some", "all"), {"all": ("nobody", "some", "all")}))
    assert np.isnan(floor.AP["nobody"]) and floor.AP.mean() == pytest.approx((2/3 + 1)/2)
    assert floor.AUROC.notna().tolist() == floor.balanced_accuracy.notna().tolist() == [False, True, False]


def test_a_threshold_may_say_yes_to_all():
    "Scores below 0 on validation where everyone has the attribute"
    at = M.best_thresholds(np.full((4, 1), -1.), np.ones((4, 1)))["accuracy"]
    assert (np.full((4, 1), -1.) > at).all()
