"""Metrics against numbers worked out by hand or by an independent route."""

import numpy as np
import pytest
from scipy.stats import binom

from fer_utils import metrics

LABELS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6])
PREDICTED = np.array([0, 1, 1, 2, 3, 3, 0, 4, 5, 0])


def test_accuracy_is_the_fraction_of_the_whole():
    assert metrics.accuracy(LABELS, PREDICTED) == 0.7


def test_macro_f1_weighs_classes_alike():
    by_hand = [0.4, 2 / 3, 1, 0.8, 1, 1, 0]  # 2 * hits / (labelled + predicted), class by class
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
