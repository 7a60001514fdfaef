"""Metrics of predictions, with confidence intervals and paired tests. Inputs are NumPy arrays."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest, norm, permutation_test
from scipy.stats import t as student_t
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import f1_score

from fer_utils.data.constants import EMOTIONS
from fer_utils.errors import DataError


def require_finite(values: np.ndarray, what: str) -> None:
    """Raise DataError if values of any shape are not all finite. what: their name in the plural."""
    bad = ~np.isfinite(values)
    if bad.any():
        n, first = int(bad.sum()), ", ".join(map(str, np.argwhere(bad)[0]))
        raise DataError(
            f"{n:,} of {bad.size:,} {what} {'is' if n == 1 else 'are'} not finite, the first at position ({first}); "
            "nothing can be computed from them"
        )


def require_any(values: Sequence | np.ndarray, what: str = "images") -> None:
    """Raise DataError if there are no values: nothing was measured, so there is no number to give."""
    if not len(values):
        raise DataError(f"there are no {what} to evaluate; the split or the selection is empty")


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Compute the fraction of correct predictions. labels, predicted: (N,) int; DataError for N = 0."""
    require_any(labels)
    return float(np.mean(labels == predicted))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Compute the unweighted mean of the F1 scores of the seven classes; a class that does not occur counts as 0.

    DataError without images.
    """
    require_any(labels)
    return float(f1_score(labels, predicted, labels=range(len(EMOTIONS)), average="macro", zero_division=0))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Count images in a (7,7) table with one row per label and one column per prediction."""
    counts = sklearn_confusion_matrix(labels, predicted, labels=range(len(EMOTIONS)))
    return pd.DataFrame(counts, index=pd.Index(EMOTIONS, name="labeled"), columns=pd.Index(EMOTIONS, name="predicted"))


def wilson_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Compute the 95 % Wilson interval (1927) of a proportion, which is valid for small n; (nan, nan) for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    interval = binomtest(hits, n).proportion_ci(confidence_level=2 * norm.cdf(z) - 1, method="wilson")
    return float(interval.low), float(interval.high)


def per_class_recall(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Compute the recall of each emotion, with n images, hits and Wilson interval; the last row "all" is accuracy.

    An emotion without images has recall nan. DataError if there is no image at all.
    """
    require_any(labels)
    rows = []
    for emotion, mask in [*((e, labels == i) for i, e in enumerate(EMOTIONS)), ("all", np.ones(len(labels), bool))]:
        n, hits = int(mask.sum()), int((predicted[mask] == labels[mask]).sum())
        low, high = wilson_interval(hits, n)
        rows.append(
            {
                "emotion": emotion,
                "n": n,
                "hits": hits,
                "recall": hits / n if n else np.nan,
                "ci_low": low,
                "ci_high": high,
            }
        )
    return pd.DataFrame(rows)


def bootstrap_ci(
    statistic: Callable[[np.ndarray], float], n: int, repeats: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Compute the 95 % percentile bootstrap interval of a statistic over n test images (Efron 1979).

    statistic: takes the row numbers (n,) of one resample, drawn with replacement, and returns a number. DataError for
    n = 0.
    """
    require_any(range(n))
    # scipy.stats.bootstrap draws the same rows, but its percentiles differ from the published ones in the last digit.
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(repeats)]
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def mcnemar(labels: np.ndarray, predicted_a: np.ndarray, predicted_b: np.ndarray) -> dict[str, float]:
    """Compare two models on the same images with the exact McNemar test (1947).

    Returns only_a and only_b (images that only one of the two classifies correctly), difference (accuracy of a minus b)
    and p_value, two-sided, of a binomial test on these images. DataError without images.
    """
    require_any(labels)
    correct_a, correct_b = predicted_a == labels, predicted_b == labels
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {
        "only_a": only_a,
        "only_b": only_b,
        "difference": (only_a - only_b) / len(labels),
        "p_value": float(p_value),
    }


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Compare two methods by k runs of each with the same seeds. a, b: (k,), paired by position.

    Returns seeds (k), mean and sd of the differences a - b, ci_low and ci_high (95 % t-interval of the mean, which
    assumes normal differences), p_value of the exact two-sided sign-flip test (Fisher 1935), and smallest_p.

    The p-value is the share of the 2^k sign patterns whose mean is at least as far from 0. Two patterns always are, so
    the p-value cannot be below smallest_p = 2 / 2^k. With five seeds or fewer it never reaches 0.05. With one seed, sd
    and interval are nan. ValueError unless a and b have the same length, 1 to 20; DataError if a score is not finite.
    """
    require_finite(np.asarray([*a, *b], dtype=float), "scores")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float) if len(a) == len(b) else np.empty(0)
    k = len(differences)
    if not 1 <= k <= 20:
        raise ValueError(f"paired_difference needs two lists of 1 to 20 numbers each, got {len(a)} and {len(b)}")
    mean = differences.mean()
    sd = differences.std(ddof=1) if k > 1 else np.nan
    half = student_t.ppf(0.975, k - 1) * sd / np.sqrt(k) if k > 1 else np.nan
    return {
        "seeds": k,
        "mean": float(mean),
        "sd": float(sd),
        "ci_low": float(mean - half),
        "ci_high": float(mean + half),
        "p_value": sign_flip_test(differences) if k > 1 else 1.0,
        "smallest_p": min(1.0, 2 / 2**k),
    }


def sign_flip_test(differences: np.ndarray) -> float:
    """Compute the exact two-sided p-value of the mean of k differences (k,), k > 1, from all 2^k sign patterns."""

    def mean(flipped: np.ndarray, axis: int) -> np.ndarray:
        return np.round(np.mean(flipped, axis), 10)  # tied means differ in their last bits, so they are rounded

    test = permutation_test((differences,), mean, permutation_type="samples", n_resamples=np.inf, batch=10_000)
    return float(test.pvalue)


def seeds_verdict(test: Mapping[str, float]) -> str:
    """Turn the result of paired_difference into the verdict on two methods that all notebooks use.

    The verdict is "better" or "worse" only if the interval over seeds excludes zero and the sign-flip test gives
    p < 0.05. With fewer than six seeds p is never below 0.05, so no difference can be shown.
    """
    if test["smallest_p"] >= 0.05:
        return f"cannot be shown with {test['seeds']} seed{'s' if test['seeds'] > 1 else ''}"
    if test["p_value"] < 0.05 and not test["ci_low"] <= 0 <= test["ci_high"]:
        return "better" if test["mean"] > 0 else "worse"
    return "no difference shown"


def networks_verdict(difference: float, p_value: float) -> str:
    """Turn the result of McNemar's test of two networks, one seed each, into the verdict that all notebooks use.

    difference: accuracy of the first minus the second. p_value: Holm-corrected if several pairs are compared.
    """
    if p_value >= 0.05:
        return "no difference shown between these networks"
    return f"this network is {'better' if difference > 0 else 'worse'} (one seed)"


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Correct k p-values (k,) for multiple comparisons (Holm 1979).

    The smallest is multiplied by k, the next by k - 1 and so on. Corrected values keep their order and are at most 1.
    """
    p = np.asarray(p_values, dtype=float)
    require_finite(p, "p-values")
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def reliability(labels: np.ndarray, probs: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """Compare accuracy with confidence (the largest probability), in bins of equal width.

    labels: (N,). probs: (N,C). Returns one row per bin, which includes its upper end: low, high, n images, their mean
    confidence and their accuracy (both nan for n = 0). DataError without images, or if a probability is not finite.
    """
    require_any(labels)
    require_finite(probs, "probabilities")
    confidence, correct = probs.max(1), probs.argmax(1) == labels  # (N,) each
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    n = np.bincount(place, minlength=bins)
    occupied = np.where(n > 0, n, np.nan)
    edges = np.linspace(0, 1, bins + 1)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "n": n,
            "confidence": np.bincount(place, confidence, bins) / occupied,
            "accuracy": np.bincount(place, correct, bins) / occupied,
        }
    )


def ece(labels: np.ndarray, probs: np.ndarray, bins: int = 15) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv:1706.04599), 0 to 1; 0 is perfect.

    It is the mean gap between confidence and accuracy over the rows of `reliability`, weighted by their images.
    """
    table = reliability(labels, probs, bins)
    gaps = (table.accuracy - table.confidence).abs()  # nan where there is no image
    return float((table.n * gaps.fillna(0)).sum() / len(labels))


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Fit the temperature T that minimizes the cross-entropy of softmax(logits / T) (Guo et al. 2017).

    labels: (N,). logits: (N,C) of val, because T is fitted and test must stay untouched. A T above 1 means that the
    network was overconfident. T is searched between 0.05 and 20; it changes no prediction. DataError without images, or
    if a logit is not finite.
    """
    require_any(labels)
    require_finite(logits, "logits")
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(np.asarray(logits, dtype=float) / np.exp(log_temperature), axis=1)[rows, labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded").x))


def summarize(labels: np.ndarray, logits: np.ndarray, has_copy_in_train: np.ndarray) -> dict[str, float]:
    """Compute the main results of one model on one split, averaged over its seeds.

    labels: (N,). logits: (S,N,7) of S seeds. has_copy_in_train: (N,) bool. Returns n, seeds, accuracy, accuracy_sd
    (over seeds; nan for one), macro_f1, accuracy_no_duplicates, ci_low and ci_high. The interval is a bootstrap over
    images of the mean accuracy of these seeds. It covers the choice of test images, not the choice of seeds. DataError
    without images or seeds, or if a logit is not finite.
    """
    require_any(labels)
    require_any(logits, "seeds")
    require_finite(logits, "logits")
    predicted = logits.argmax(2)  # (S,N)
    hits = predicted == labels  # (S,N)
    hits_per_image = hits.mean(0)  # (N,)
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


def pareto_front(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that no other row beats: none is both at most as expensive and more accurate.

    table: one row per model with the columns gmacs and accuracy. The result is sorted by gmacs.
    """
    by_cost = table.sort_values(["gmacs", "accuracy"], ascending=[True, False])
    best_so_far = by_cost.accuracy.cummax().shift(fill_value=-1)  # among the cheaper ones
    return by_cost[by_cost.accuracy > best_so_far]
