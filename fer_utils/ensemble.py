"""Ensembles of several networks: weighted averages, fitted and selected only on val, and stacking.

Everywhere in this module, logits are (K,N,C) of K networks for the same N images, as in `Predictions` of one split,
labels are (N,), and weights are (K,), not negative, with a sum of 1.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from fer_utils import metrics
from fer_utils.data.constants import EMOTIONS
from fer_utils.data.dataset import FaceDataset
from fer_utils.errors import DataError
from fer_utils.predict import Predictions, load_predictions

Combine = Callable[[np.ndarray], np.ndarray]  # logits (K,N,C) -> probabilities (N,C)
TINY = 1e-12  # keeps the logarithm of a probability finite


# --- Read -------------------------------------------------------------------------------------------------------------


def load_models(
    folder: Path, dataset: FaceDataset, names: Iterable[str]
) -> tuple[dict[str, Predictions], dict[str, str]]:
    """Load the published logits of several models; returns the usable ones, and the problem of each other name.

    Logits are not usable if they are missing or damaged, belong to other data or another class order, or repeat those
    of an earlier model. DataError if fewer than two models are usable.
    """
    models: dict[str, Predictions] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            predictions = load_predictions(folder / f"{name}.npz", dataset)
        except DataError as error:
            problems[name] = str(error)
            continue
        twin = next((other for other in models if np.array_equal(models[other].val, predictions.val)), None)
        if twin:
            problems[name] = f"{name}.npz holds the same logits as {twin}.npz; they count once"
        else:
            models[name] = predictions
    if len(models) < 2:
        reason = next(iter(problems.values()), "no other model is named")
        raise DataError(f"an ensemble needs two models ({reason}); run notebooks 04 to 06, or correct `inputs`")
    return models, problems


# --- Average ----------------------------------------------------------------------------------------------------------


def normalize_weights(weights: Sequence[float]) -> np.ndarray:
    """Divide weights (K,) by their sum and print a line if it was not 1; ValueError for negative ones or a sum of 0."""
    values = np.asarray(weights, float)
    total = values.sum()
    if not (np.isfinite(values).all() and (values >= 0).all() and total > 0):
        raise ValueError(f"the weights {values.tolist()} cannot be used; they must be 0 or more, and one above 0")
    if not np.isclose(total, 1, atol=1e-6):
        print(f"the weights sum to {total:.4g}, not to 1; each is divided by this sum")
    return values / total


def weighted_softmax(logits: Sequence[np.ndarray] | np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Average the softmax of K networks with weights (K,): probabilities (N,C) float64. logits: K of (N,C).

    Weights that do not sum to 1 are normalized, and a line is printed. ValueError if their number is not K.
    """
    if len(logits) != len(weights):
        raise ValueError(f"{len(logits)} networks need as many weights, not {len(weights)}")
    return np.tensordot(normalize_weights(weights), softmax(np.asarray(logits, float), axis=2), axes=1)


def mean_loss(labels: np.ndarray, probs: np.ndarray) -> float:
    """Compute the mean negative log-likelihood of the labels, in nats. probs: (N,C)."""
    return float(-np.log(probs[np.arange(len(labels)), labels] + TINY).mean())


def compare_pairs(logits: np.ndarray, labels: np.ndarray, models: Sequence[str]) -> pd.DataFrame:
    """Compute the gain of the plain average of each pair of networks: one row per pair, K (K - 1) / 2 in all.

    models: the name of each network's model, which begins with the number of its notebook. Columns: kind of pair,
    disagree (share of images with different predictions), gap (between their accuracies), gain (over the better one).
    All numbers are fractions, not percent.
    """
    probs = softmax(np.asarray(logits, np.float32), axis=2)  # (K,N,C)
    predicted = probs.argmax(2)  # (K,N)
    accuracies = (predicted == labels).mean(1)  # (K,)
    rows = []
    for j in range(len(models)):
        for i in range(j):
            same_notebook = models[i][:2] == models[j][:2]
            kind = "other model of the notebook" if same_notebook else "other notebook"
            together = metrics.accuracy(labels, (probs[i] + probs[j]).argmax(1))
            rows.append(
                {
                    "kind": "same model, other seed" if models[i] == models[j] else kind,
                    "disagree": (predicted[i] != predicted[j]).mean(),
                    "gap": abs(accuracies[i] - accuracies[j]),
                    "gain": together - max(accuracies[i], accuracies[j]),
                }
            )
    return pd.DataFrame(rows)


# --- Choose weights on val --------------------------------------------------------------------------------------------


def single_best(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give weight 1 to the network with the highest accuracy, (K,); among equal ones, to that with the lowest loss."""
    hits = (logits.argmax(2) == labels).mean(1)
    losses = -np.log(labeled_probs(logits, labels) + TINY).mean(1)
    return np.eye(len(logits))[np.lexsort((losses, -hits))[0]]


def equal_weights(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give every network the same weight, (K,), whatever the logits and labels."""
    return np.full(len(logits), 1 / len(logits))


def fit_weights(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fit the weights (K,) that minimize the loss of the average on these images, which must be val, never test.

    The loss is convex in the weights, so scipy's SLSQP finds the global minimum. Weights below 0.001 become 0.
    """
    probs = labeled_probs(logits, labels)  # (K,N)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = weights @ probs + TINY
        return -np.log(mixed).mean(), -(probs / mixed).mean(1)

    result = minimize(
        loss,
        equal_weights(logits, labels),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * len(logits),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 500, "ftol": 1e-10},
    )
    weights = np.where(result.x < 1e-3, 0, result.x)
    return weights / weights.sum()


def best_pair(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give weight 1/2 to the two networks whose average has the lowest loss of all pairs, (K,)."""
    probs = labeled_probs(logits, labels)
    if len(probs) < 2:
        raise ValueError("a pair needs two networks, and there is only one")
    losses = {
        (i, j): -np.log((probs[i] + probs[j]) / 2 + TINY).mean() for j in range(len(probs)) for i in range(j)
    }  # fmt: skip
    weights = np.zeros(len(probs))
    weights[list(min(losses, key=losses.get))] = 0.5
    return weights


def greedy_selection(logits: np.ndarray, labels: np.ndarray, largest: int = 20) -> np.ndarray:
    """Select networks greedily with replacement (Caruana et al. 2004); returns weights (K,).

    Each step adds the network that lowers the loss of the average most; the first has the lowest loss of all. The
    search stops after `largest` additions, or when no addition lowers the loss. The weight of a network is its share of
    the additions.
    """
    probs = labeled_probs(logits, labels)  # (K,N)
    counts, total, lowest = np.zeros(len(probs)), np.zeros(len(labels)), np.inf
    while counts.sum() < largest:
        losses = -np.log((total + probs) / (counts.sum() + 1) + TINY).mean(1)  # (K,)
        if losses.min() >= lowest:
            break
        best = losses.argmin()
        counts[best], total, lowest = counts[best] + 1, total + probs[best], losses[best]
    return counts / counts.sum()


def all_subsets(count: int) -> np.ndarray:
    """List all non-empty subsets of `count` things, (2^count - 1, count) bool; ValueError above 14: too many to try."""
    if count > 14:
        raise ValueError(f"{count} things have {2**count - 1:,} subsets; 14 is the most that are tried one by one")
    return (np.arange(1, 2**count)[:, None] >> np.arange(count) & 1).astype(bool)


def subset_hits(logits: np.ndarray, labels: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Mark the images that the plain average of each of M subsets (M,K) classifies correctly: (M,N) bool."""
    probs = softmax(np.asarray(logits, np.float32), axis=2)
    return np.array([probs[subset].sum(0).argmax(1) == labels for subset in subsets])


def labeled_probs(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each network's probability of the label, (K,N). The loss of an average depends only on these."""
    return softmax(np.asarray(logits, float), axis=2)[:, np.arange(len(labels)), labels]


# --- Stack and evaluate -----------------------------------------------------------------------------------------------


def fit_stacking(logits: np.ndarray, labels: np.ndarray, folds: int = 5) -> Combine:
    """Fit a logistic regression to the K * C log-probabilities of all networks (stacking: Wolpert 1992).

    Cross-validation within these images chooses one of three strengths of regularization.
    """
    search = GridSearchCV(
        LogisticRegression(max_iter=1000, tol=1e-3),
        {"C": [1e-3, 1e-2, 1e-1]},
        scoring="neg_log_loss",
        cv=StratifiedKFold(folds, shuffle=True, random_state=0),
    )
    search.fit(_features(logits), labels)

    def combine(logits: np.ndarray) -> np.ndarray:
        probs = np.zeros(logits.shape[1:])
        probs[:, search.classes_] = search.predict_proba(_features(logits))
        return probs

    return combine


def _features(logits: np.ndarray) -> np.ndarray:
    """Turn logits (K,N,C) into log-probabilities (N,K*C)."""
    return np.concatenate(list(log_softmax(np.asarray(logits, float), axis=2)), axis=1)


def averaging(choose: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], Combine]:
    """Turn a function that chooses weights into a method that fits a weighted average."""

    def fit(logits: np.ndarray, labels: np.ndarray) -> Combine:
        weights = choose(logits, labels)
        return lambda logits: weighted_softmax(logits, weights)

    return fit


def cross_validate(
    fit: Callable[[np.ndarray, np.ndarray], Combine], logits: np.ndarray, labels: np.ndarray, folds: int = 5
) -> np.ndarray:
    """Compute probabilities (N,C) by cross-validation: each image is predicted by an ensemble fitted without its fold.

    A method therefore gains nothing from overfitting the images on which it chose its weights.
    """
    probs = np.zeros(logits.shape[1:])
    for fit_rows, held_out in StratifiedKFold(folds, shuffle=True, random_state=0).split(labels, labels):
        probs[held_out] = fit(logits[:, fit_rows], labels[fit_rows])(logits[:, held_out])
    return probs


def judge(
    labels: np.ndarray, predicted: np.ndarray, reference: np.ndarray, has_copy_in_train: np.ndarray
) -> dict[str, float]:
    """Evaluate an ensemble on one split and compare it with a reference; predicted, reference: classes (N,).

    Returns n, accuracy, ci_low, ci_high, macro_f1 and accuracy_no_duplicates as in metrics.summarize; difference,
    difference_low and difference_high (accuracy minus that of the reference, with the 95 % interval of a paired
    bootstrap); and p_value of McNemar's test.
    """
    summary = metrics.summarize(labels, np.eye(len(EMOTIONS))[predicted][None], has_copy_in_train)
    columns = ("n", "accuracy", "ci_low", "ci_high", "macro_f1", "accuracy_no_duplicates")
    paired = (predicted == labels).astype(float) - (reference == labels)
    low, high = metrics.bootstrap_ci(lambda rows: paired[rows].mean(), len(labels))
    return {key: summary[key] for key in columns} | {
        "difference": float(paired.mean()),
        "difference_low": low,
        "difference_high": high,
        "p_value": metrics.mcnemar(labels, predicted, reference)["p_value"],
    }


def optimism(hits: np.ndarray, repeats: int = 200, seed: int = 0) -> float:
    """Estimate the bias in the accuracy of the best of M candidates when the same images select and evaluate it.

    hits: (M,N) bool, the images that each candidate classifies correctly. The images are split at random into two
    halves. The best candidate of the first half is evaluated on both halves. Returns the mean difference of its two
    accuracies, as a fraction, which is the bias for half as many images.
    """
    n = hits.shape[1]
    rng = np.random.default_rng(seed)
    halves = np.array([rng.permutation(n) < n // 2 for _ in range(repeats)], np.float32)  # (repeats,N)
    correct = hits.astype(np.float32)
    first, second = correct @ halves.T / (n // 2), correct @ (1 - halves.T) / (n - n // 2)  # accuracies (M,repeats)
    best = first.argmax(0)  # (repeats,)
    repeat = np.arange(repeats)
    return float((first[best, repeat] - second[best, repeat]).mean())
