"""Numbers that judge predictions, with the intervals and paired tests that go with them. NumPy in, floats out."""

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


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Fraction of all images whose predicted class is the labeled one. labels, predicted: (N,) int."""
    return float(np.mean(labels == predicted))


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """F1 averaged over the seven classes, each counting the same however small it is; absent classes count 0."""
    return float(f1_score(labels, predicted, labels=range(len(EMOTIONS)), average="macro", zero_division=0))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """Counts (7,7): one row per labeled emotion, one column per predicted emotion."""
    counts = sklearn_confusion_matrix(labels, predicted, labels=range(len(EMOTIONS)))
    return pd.DataFrame(counts, index=pd.Index(EMOTIONS, name="labeled"), columns=pd.Index(EMOTIONS, name="predicted"))


def wilson_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): stays in 0-1 and is sensible for small n. (nan, nan) for n = 0."""
    if n == 0:
        return float("nan"), float("nan")
    interval = binomtest(hits, n).proportion_ci(confidence_level=2 * norm.cdf(z) - 1, method="wilson")
    return float(interval.low), float(interval.high)


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
    scipy.stats.bootstrap draws the same rows, but its percentiles differ from the published ones in the last digit.
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


def paired_difference(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Is method a better than b, judged by k runs of each that share their seeds? a, b: (k,), paired by position.

    Returns seeds (k), mean and sd of the differences a - b, ci_low and ci_high (95 % t-interval of the mean; it takes
    the differences for normal), and p_value of the exact two-sided sign-flip test (Fisher 1935): the share of the 2^k
    ways to flip their signs that leave a mean at least as far from 0. Two of them always do, so with k seeds it cannot
    fall below smallest_p = 2 / 2^k: five seeds or fewer never reach 0.05. With one seed sd and interval are nan.
    ValueError when a and b are not two lists of 1 to 20 numbers of the same length.
    """
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
    """Exact two-sided p-value of the mean of k differences (k,), k > 1: all 2^k ways to flip their signs are tried."""

    def mean(flipped: np.ndarray, axis: int) -> np.ndarray:
        return np.round(np.mean(flipped, axis), 10)  # means that tie must be equal, and their last bits are not

    test = permutation_test((differences,), mean, permutation_type="samples", n_resamples=np.inf, batch=10_000)
    return float(test.pvalue)


def seeds_verdict(test: Mapping[str, float]) -> str:
    """What paired_difference says about two methods, in the words that all notebooks use.

    "better" or "worse" only if the interval over seeds leaves out zero and the sign-flip test gives p < 0.05. With
    fewer than six seeds p cannot fall below 0.05, whatever was measured.
    """
    if test["smallest_p"] >= 0.05:
        return f"cannot be shown with {test['seeds']} seed{'s' if test['seeds'] > 1 else ''}"
    if test["p_value"] < 0.05 and not test["ci_low"] <= 0 <= test["ci_high"]:
        return "better" if test["mean"] > 0 else "worse"
    return "no difference shown"


def networks_verdict(difference: float, p_value: float) -> str:
    """What McNemar's test says about two trained networks, one seed each, in the words that all notebooks use.

    difference: accuracy of the first minus the second. p_value: after Holm's correction where several are compared.
    """
    if p_value >= 0.05:
        return "no difference shown between these networks"
    return f"this network is {'better' if difference > 0 else 'worse'} (one seed)"


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Correct k p-values (k,) for having been k questions (Holm 1979): below 0.05, each still stands among the others.

    The smallest counts k times, the next k - 1 times and so on; none ends below a smaller one, none above 1.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def reliability(labels: np.ndarray, probs: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """How often answers are right that a network gives with some confidence (its largest probability).

    labels: (N,). probs: (N,C). One row for each of `bins` equal ranges of confidence, which contain their upper end:
    low, high, n images, their mean confidence and their accuracy (both nan for n = 0).
    """
    confidence, right = probs.max(1), probs.argmax(1) == labels
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
            "accuracy": np.bincount(place, right, bins) / occupied,
        }
    )


def ece(labels: np.ndarray, probs: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): mean gap of confidence and accuracy, 0 to 1.

    The gap of every row of `reliability` counts as often as it has images; 0 is perfect.
    """
    table = reliability(labels, probs, bins)
    gaps = (table.accuracy - table.confidence).abs()  # nan where there is no image
    return float((table.n * gaps.fillna(0)).sum() / len(labels))


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The T for which softmax(logits / T) gives the labels (N,) the highest likelihood (Guo et al. 2017).

    logits: (N,C), of val: T is a choice. Above 1: the network was too sure. It is looked for between 0.05 and 20, and
    changes no answer.
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(np.asarray(logits, dtype=float) / np.exp(log_temperature), axis=1)[rows, labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded").x))


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
