"""Numbers that judge predictions, with the intervals and paired tests that go with them. NumPy in, floats out."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import f1_score

from fer_utils.data import EMOTIONS


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Fraction of all images whose predicted class is the labelled one. labels, predicted: (N,) int."""
    return float(np.mean(labels == predicted))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """F1 averaged over the seven classes, each counting the same however small it is; absent classes count 0."""
    return float(f1_score(labels, predicted, labels=range(len(EMOTIONS)), average="macro", zero_division=0))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Counts (7,7): one row per labelled emotion, one column per predicted emotion."""
    counts = sklearn_confusion_matrix(labels, predicted, labels=range(len(EMOTIONS)))
    return pd.DataFrame(counts, index=pd.Index(EMOTIONS, name="labelled"), columns=pd.Index(EMOTIONS, name="predicted"))


def wilson_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): stays in 0-1 and is sensible for small n. (nan, nan) for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    p = hits / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float((centre - half) / (1 + z**2 / n)), float((centre + half) / (1 + z**2 / n))


def per_class_recall(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """For each emotion: n images, how many were found, recall and its Wilson interval; a last row "all" = accuracy."""
    rows = []
    for emotion, mask in [*((e, labels == i) for i, e in enumerate(EMOTIONS)), ("all", np.ones(len(labels), bool))]:
        n, hits = int(mask.sum()), int((predicted[mask] == labels[mask]).sum())
        low, high = wilson_interval(hits, n)
        rows.append(
            {"emotion": emotion, "n": n, "hits": hits, "recall": hits / max(n, 1), "ci_low": low, "ci_high": high}
        )
    return pd.DataFrame(rows)


def bootstrap_ci(
    statistic: Callable[[np.ndarray], float], n: int, repeats: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic over n test images (Efron 1979).

    statistic: takes the (n,) row numbers of one resample, drawn with replacement, and returns a number.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(repeats)]
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def mcnemar(labels: np.ndarray, predicted_a: np.ndarray, predicted_b: np.ndarray) -> dict[str, float]:
    """Exact McNemar test (1947) of two models on the same images: do their errors differ by more than chance?

    Returns only_a and only_b (images that one model alone gets right), difference (accuracy of a minus b) and the
    two-sided p-value of the binomial test on the images where exactly one of them is right.
    """
    right_a, right_b = predicted_a == labels, predicted_b == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {
        "only_a": only_a,
        "only_b": only_b,
        "difference": (only_a - only_b) / len(labels),
        "p_value": float(p_value),
    }


def summarize(labels: np.ndarray, logits: np.ndarray, has_copy_in_train: np.ndarray) -> dict[str, float]:
    """The headline numbers of one model on one split, averaged over its seeds.

    labels: (N,). logits: (S,N,7) for S seeds. has_copy_in_train: (N,) bool. Returns n, seeds, accuracy, accuracy_sd
    (over seeds; nan for one), ci_low and ci_high (bootstrap over images of the mean accuracy of these seeds: it covers
    the choice of test images, not the choice of seeds), macro_f1 and accuracy_no_duplicates.
    """
    predicted = logits.argmax(2)
    hits = predicted == labels  # (S,N)
    hits_per_image = hits.mean(0)
    low, high = bootstrap_ci(lambda rows: hits_per_image[rows].mean(), len(labels))
    return {
        "n": len(labels),
        "seeds": len(logits),
        "accuracy": float(hits_per_image.mean()),
        "accuracy_sd": float(hits.mean(1).std(ddof=1)) if len(logits) > 1 else float("nan"),
        "ci_low": low,
        "ci_high": high,
        "macro_f1": float(np.mean([macro_f1(labels, p) for p in predicted])),
        "accuracy_no_duplicates": float(hits_per_image[~has_copy_in_train].mean()),
    }
