"""Metrics against numbers worked out by hand or by an independent route."""

import numpy as np
import pytest
from scipy.stats import binom

from fer_utils import metrics
from fer_utils.errors import DataError

LABELS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6])
PREDICTED = np.array([0, 1, 1, 2, 3, 3, 0, 4, 5, 0])


def test_accuracy_is_the_fraction_of_the_whole():
    assert metrics.accuracy(LABELS, PREDICTED) == 0.7


def test_macro_f1_weighs_classes_alike():
    by_hand = [0.4, 2 / 3, 1, 0.8, 1, 1, 0]  # 2 * hits / (labeled + predicted), class by class
    assert metrics.macro_f1(LABELS, PREDICTED) == pytest.approx(np.mean(by_hand))


def test_confusion_matrix_counts_rows_as_labels():
    counts = metrics.confusion_matrix(LABELS, PREDICTED)
    assert counts.values.sum() == len(LABELS)
    assert counts.loc["happy", "angry"] == 1 and counts.loc["angry", "happy"] == 0


def test_recall_rows_add_up_to_accuracy():
    recall = metrics.per_class_recall(LABELS, PREDICTED).set_index("emotion")
    assert recall.loc["all", "n"] == recall.n.drop("all").sum() == len(LABELS)
    assert recall.loc["all", "recall"] == metrics.accuracy(LABELS, PREDICTED)
    assert recall.loc["happy", "recall"] == pytest.approx(2 / 3)
    assert (recall.ci_low <= recall.recall + 1e-12).all() and (recall.recall <= recall.ci_high + 1e-12).all()


def test_wilson_interval_covers_as_promised():
    n, p = 60, 0.3
    covered = sum(
        binom.pmf(k, n, p)
        for k in range(n + 1)
        if metrics.wilson_interval(k, n)[0] <= p <= metrics.wilson_interval(k, n)[1]
    )
    assert 0.93 < covered < 0.975
    assert metrics.wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert np.isnan(metrics.wilson_interval(0, 0)).all()


def test_bootstrap_agrees_with_the_binomial_error():
    hits = np.arange(3589) < 0.65 * 3589
    low, high = metrics.bootstrap_ci(lambda rows: hits[rows].mean(), len(hits))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.65 * 0.35 / 3589), rel=0.1)
    assert low < hits.mean() < high


def test_mcnemar_looks_only_at_disagreements():
    labels = np.zeros(100, int)
    a, b = np.zeros(100, int), np.zeros(100, int)
    a[:2], b[10:20] = 1, 1  # a alone is wrong twice, b alone ten times
    result = metrics.mcnemar(labels, a, b)
    assert (result["only_a"], result["only_b"]) == (10, 2)
    assert result["difference"] == pytest.approx(metrics.accuracy(labels, a) - metrics.accuracy(labels, b))
    assert result["p_value"] == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert metrics.mcnemar(labels, a, a)["p_value"] == 1.0


def test_summarize_averages_seeds_and_leaves_out_copies():
    one_hot = np.eye(7)[np.stack([PREDICTED, LABELS])]  # seed 0 as above, seed 1 perfect
    copies = np.zeros(10, bool)
    copies[1] = True  # one of the three mistakes of seed 0
    summary = metrics.summarize(LABELS, one_hot, copies)
    assert summary["n"] == 10 and summary["seeds"] == 2
    assert summary["accuracy"] == pytest.approx(0.85)
    assert summary["accuracy_sd"] == pytest.approx(np.std([0.7, 1.0], ddof=1))
    assert summary["accuracy_no_duplicates"] == pytest.approx((7 / 9 + 1) / 2)
    assert summary["ci_low"] <= 0.85 <= summary["ci_high"]


def test_paired_difference_by_hand():
    result = metrics.paired_difference([0.60, 0.63, 0.66], [0.59, 0.61, 0.63])  # differences 1, 2 and 3 points
    assert result["seeds"] == 3
    assert result["mean"] == pytest.approx(0.02)
    assert result["sd"] == pytest.approx(0.01)
    half = 4.302653 * 0.01 / np.sqrt(3)  # t of two degrees of freedom, from a printed table
    assert (result["ci_low"], result["ci_high"]) == pytest.approx((0.02 - half, 0.02 + half))
    assert result["p_value"] == result["smallest_p"] == 2 / 2**3  # only all-plus and all-minus lie as far out


def test_sign_flip_counts_every_way_that_is_as_extreme():
    # Sums of +-1 +-2 +-4 with |sum| >= 5, the observed 1 - 2 - 4: all but +-3 and +-1, so 4 of 8.
    result = metrics.paired_difference([1, 0, 0], [0, 2, 4])
    assert result["p_value"] == 4 / 8
    assert metrics.paired_difference([1, 2], [1, 2])["p_value"] == 1.0


def test_sign_flip_survives_rounding():
    # Only all-plus and all-minus reach 0.6, each twice, as a zero has no sign. In binary the sums differ by 1e-16, and
    # without room for that not even the observed one would count.
    assert metrics.paired_difference([0.1, 0.3, 0, 0.2], [0, 0, 0, 0])["p_value"] == 4 / 16
    # Differences -1, 3, 1 and -2 points: their sum is odd whatever the signs, so that none lies nearer to 0 than 1.
    assert metrics.paired_difference([0.56, 0.55, 0.53, 0.55], [0.57, 0.52, 0.52, 0.57])["p_value"] == 1.0


def test_one_seed_has_no_interval_and_unpaired_lists_are_refused():
    one = metrics.paired_difference([0.6], [0.5])
    assert one["p_value"] == one["smallest_p"] == 1.0
    assert np.isnan([one["sd"], one["ci_low"], one["ci_high"]]).all()
    for a, b in [([0.6, 0.7], [0.5]), ([], []), ([0.0] * 21, [0.0] * 21)]:
        with pytest.raises(ValueError, match="1 to 20"):
            metrics.paired_difference(a, b)


PROBS = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.4, 0.6], [0.45, 0.55]])
TWO_CLASSES = np.array([0, 1, 1, 1, 0])


def test_reliability_by_hand():
    table = metrics.reliability(TWO_CLASSES, PROBS, bins=4)
    assert table.low.tolist() == [0, 0.25, 0.5, 0.75] and table.high.tolist() == [0.25, 0.5, 0.75, 1]
    assert table.n.tolist() == [0, 0, 2, 3]
    assert table.confidence.iloc[2:].tolist() == pytest.approx([0.575, 2.5 / 3])
    assert table.accuracy.iloc[2:].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert table[["confidence", "accuracy"]].iloc[:2].isna().all(axis=None)


def test_ece_by_hand():
    by_hand = 2 / 5 * (0.575 - 0.5) + 3 / 5 * (2.5 / 3 - 2 / 3)
    assert metrics.ece(TWO_CLASSES, PROBS, bins=4) == pytest.approx(by_hand)
    certain = np.eye(7)[LABELS]
    assert metrics.ece(LABELS, certain) == 0
    assert metrics.ece((LABELS + 1) % 7, certain) == 1


def test_a_bin_contains_its_upper_end():
    table = metrics.reliability(np.array([0, 0]), np.array([[0.5, 0.5], [1.0, 0.0]]), bins=2)
    assert table.n.tolist() == [1, 1]


def test_temperature_by_hand():
    # Three of four right with the same logits (2, 0): the best probability is 3/4, so 2 / T = ln 3.
    labels, logits = np.array([0, 0, 0, 1]), np.array([[2.0, 0.0]] * 4)
    assert metrics.fit_temperature(labels, logits) == pytest.approx(2 / np.log(3), rel=1e-3)
    assert metrics.fit_temperature(labels, 5 * logits) == pytest.approx(10 / np.log(3), rel=1e-3)


# --- Not a number, or no image ----------------------------------------------------------------------------------------

NAN = np.array([[0.6, 0.4], [np.nan, 0.5]])
EMPTY = np.empty(0, int)
CALLS = {
    "nan logits": lambda: metrics.summarize(LABELS, np.full((1, 10, 7), np.nan), np.zeros(10, bool)),
    "infinite logits": lambda: metrics.summarize(LABELS, np.full((1, 10, 7), np.inf), np.zeros(10, bool)),
    "nan in ece": lambda: metrics.ece(np.array([0, 1]), NAN),
    "nan in reliability": lambda: metrics.reliability(np.array([0, 1]), NAN),
    "nan in fit_temperature": lambda: metrics.fit_temperature(np.array([0, 1]), NAN),
    "nan score": lambda: metrics.paired_difference([0.5, np.nan, 0.6], [0.4, 0.4, 0.4]),
    "infinite score": lambda: metrics.paired_difference([0.5, np.inf], [0.4, np.inf]),
    "nan p-value": lambda: metrics.holm([0.01, np.nan]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_not_finite_is_an_error_and_never_a_number(call):
    with pytest.raises(DataError, match=r"of [\d,]+ (logits|probabilities|scores|p-values) (is|are) not finite"):
        call()


EMPTY_CALLS = {
    "accuracy": lambda: metrics.accuracy(EMPTY, EMPTY),
    "macro_f1": lambda: metrics.macro_f1(EMPTY, EMPTY),
    "recall": lambda: metrics.per_class_recall(EMPTY, EMPTY),
    "mcnemar": lambda: metrics.mcnemar(EMPTY, EMPTY, EMPTY),
    "ece": lambda: metrics.ece(EMPTY, np.empty((0, 7))),
    "temperature": lambda: metrics.fit_temperature(EMPTY, np.empty((0, 7))),
    "bootstrap": lambda: metrics.bootstrap_ci(lambda rows: rows.mean(), 0),
    "summary": lambda: metrics.summarize(EMPTY, np.empty((1, 0, 7)), np.empty(0, bool)),
    "summary of no seed": lambda: metrics.summarize(LABELS, np.empty((0, 10, 7)), np.zeros(10, bool)),
}


@pytest.mark.parametrize("call", EMPTY_CALLS.values(), ids=EMPTY_CALLS)
def test_an_empty_split_is_an_error_and_never_a_number(call):
    with pytest.raises(DataError, match=r"there are no (images|seeds) to evaluate"):
        call()


def test_a_class_without_images_has_no_recall():
    recall = metrics.per_class_recall(LABELS[:3], PREDICTED[:3]).set_index("emotion").recall
    assert np.isnan(recall["happy"]) and recall["angry"] == 0.5 and recall["all"] == pytest.approx(2 / 3)
