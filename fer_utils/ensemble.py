"""Several networks that answer together: weighted averages, fitted and chosen on val only, and stacking.

logits: (K,N,C) of K networks for the same N images, as in `Predictions` of one split. labels: (N,). weights: (K,), 0 or
more, sum 1.
"""

import zipfile
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
from fer_utils.data.dataset import FER2013
from fer_utils.errors import DataError
from fer_utils.predict import Predictions, load_predictions

Combine = Callable[[np.ndarray], np.ndarray]  # logits (K,N,C) -> probabilities (N,C)
TINY = 1e-12  # keeps the logarithm of a probability finite


# --- Read -------------------------------------------------------------------------------------------------------------


def load_models(folder: Path, dataset: FER2013, names: Iterable[str]) -> tuple[dict[str, Predictions], dict[str, str]]:
    """Read the published logits of several models: those that can be used, and for each other name the reason why not.

    Not used are logits that are missing, damaged, or made for other data, another split or class order, and those that
    repeat an earlier model's. DataError when fewer than two are left.
    """
    models: dict[str, Predictions] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            found = _load_checked(folder / f"{name}.npz", dataset)
        except DataError as error:
            problems[name] = str(error)
            continue
        twin = next((other for other in models if np.array_equal(models[other].val, found.val)), None)
        if twin:
            problems[name] = f"{name}.npz holds the same logits as {twin}.npz; they count once"
        else:
            models[name] = found
    if len(models) < 2:
        reason = next(iter(problems.values()), "no other model is named")
        raise DataError(f"an ensemble needs two models ({reason}); run notebooks 04 to 06, or correct `inputs`")
    return models, problems


def _load_checked(path: Path, dataset: FER2013) -> Predictions:
    """load_predictions, and DataError also for a damaged file or logits that do not fit the images of their split."""
    try:
        found = load_predictions(path, dataset)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} is damaged ({type(error).__name__}); run the notebook that makes it") from error
    for split in ("val", "test"):
        logits, expected = getattr(found, split), (len(found.seeds), len(dataset.where(split)), len(EMOTIONS))
        if logits.shape != expected:
            raise DataError(f"{path.name} has {split} logits of shape {logits.shape}; this {split} needs {expected}")
        if not np.isfinite(logits).all():
            raise DataError(f"{path.name} has {split} logits that are no numbers; run the notebook that makes it")
    return found


# --- Average ----------------------------------------------------------------------------------------------------------


def normalize_weights(weights: Sequence[float]) -> np.ndarray:
    """Weights divided by their sum, (K,); says so when it was not 1. ValueError for negative ones or a sum of 0."""
    values = np.asarray(weights, float)
    total = values.sum()
    if not (np.isfinite(values).all() and (values >= 0).all() and total > 0):
        raise ValueError(f"the weights {values.tolist()} cannot be used; they must be 0 or more, and one above 0")
    if not np.isclose(total, 1, atol=1e-6):
        print(f"the weights sum to {total:.4g}, not to 1; each is divided by this sum")
    return values / total


def weighted_softmax(logits: Sequence[np.ndarray] | np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Probabilities (N,C) float64: the weighted average of each network's softmax. logits: K of (N,C).

    Weights that do not sum to 1 are normalized, and a printed line says so. ValueError when their number is not K.
    """
    if len(logits) != len(weights):
        raise ValueError(f"{len(logits)} networks need as many weights, not {len(weights)}")
    return np.tensordot(normalize_weights(weights), softmax(np.asarray(logits, float), axis=2), axes=1)


def mean_loss(labels: np.ndarray, probs: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels, in nats. probs: (N,C)."""
    return float(-np.log(probs[np.arange(len(labels)), labels] + TINY).mean())


def compare_pairs(logits: np.ndarray, labels: np.ndarray, models: Sequence[str]) -> pd.DataFrame:
    """What the plain average of each pair of networks gains: one row per pair, K (K - 1) / 2 in all.

    models: the name of each network's model, which begins with the number of its notebook. Columns: kind of pair,
    disagree (share of images with different answers), gap (of their accuracies), gain (over the better one), 0 to 1.
    """
    probs = softmax(np.asarray(logits, np.float32), axis=2)
    answers = probs.argmax(2)
    right = (answers == labels).mean(1)
    rows = []
    for j in range(len(models)):
        for i in range(j):
            same_notebook = models[i][:2] == models[j][:2]
            kind = "other model of the notebook" if same_notebook else "other notebook"
            together = metrics.accuracy(labels, (probs[i] + probs[j]).argmax(1))
            rows.append(
                {
                    "kind": "same model, other seed" if models[i] == models[j] else kind,
                    "disagree": (answers[i] != answers[j]).mean(),
                    "gap": abs(right[i] - right[j]),
                    "gain": together - max(right[i], right[j]),
                }
            )
    return pd.DataFrame(rows)


# --- Choose weights on val --------------------------------------------------------------------------------------------


def single_best(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weight 1 for the network that is right most often, (K,); among equal ones, for the one with the lower loss."""
    hits = (logits.argmax(2) == labels).mean(1)
    losses = -np.log(labeled_probs(logits, labels) + TINY).mean(1)
    return np.eye(len(logits))[np.lexsort((losses, -hits))[0]]


def equal_weights(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same weight for every network, (K,); looks at nothing."""
    return np.full(len(logits), 1 / len(logits))


def fit_weights(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights (K,) of the average whose loss on these images is lowest: give it val, never test.

    The loss is convex in the weights, so there is one minimum; scipy's SLSQP finds it. What it gives less than a
    thousandth becomes 0.
    """
    probs = labeled_probs(logits, labels)  # (K,N)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = weights @ probs + TINY
        return -np.log(mixed).mean(), -(probs / mixed).mean(1)

    found = minimize(
        loss,
        equal_weights(logits, labels),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * len(logits),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 500, "ftol": 1e-10},
    )
    weights = np.where(found.x < 1e-3, 0, found.x)
    return weights / weights.sum()


def best_pair(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights 1/2 for the two networks whose average has the lowest loss, (K,); every pair is tried."""
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
    """Greedy ensemble selection (Caruana et al. 2004): weights (K,) are how often a network was taken / all takes.

    Starts with the network of the lowest loss and adds, up to `largest` in all, the one that lowers the loss of the
    average most; a network may be taken again. Ends when none lowers it.
    """
    probs = labeled_probs(logits, labels)
    taken, total, lowest = np.zeros(len(probs)), np.zeros(len(labels)), np.inf
    while taken.sum() < largest:
        losses = -np.log((total + probs) / (taken.sum() + 1) + TINY).mean(1)
        if losses.min() >= lowest:
            break
        best = losses.argmin()
        taken[best], total, lowest = taken[best] + 1, total + probs[best], losses[best]
    return taken / taken.sum()


def all_subsets(count: int) -> np.ndarray:
    """Every non-empty subset of `count` things, (2^count - 1, count) bool. ValueError above 14: too many to try."""
    if count > 14:
        raise ValueError(f"{count} things have {2**count - 1:,} subsets; 14 is the most that are tried one by one")
    return (np.arange(1, 2**count)[:, None] >> np.arange(count) & 1).astype(bool)


def subset_hits(logits: np.ndarray, labels: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """(M,N) bool: which images the plain average of each of M subsets (M,K) gets right."""
    probs = softmax(np.asarray(logits, np.float32), axis=2)
    return np.array([probs[subset].sum(0).argmax(1) == labels for subset in subsets])


def labeled_probs(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K,N): the probability that each network gives the labeled class. An average's loss depends on nothing else."""
    return softmax(np.asarray(logits, float), axis=2)[:, np.arange(len(labels)), labels]


# --- Stack, and judge -------------------------------------------------------------------------------------------------


def fit_stacking(logits: np.ndarray, labels: np.ndarray, folds: int = 5) -> Combine:
    """Stacking (Wolpert 1992): a logistic regression that learns from all networks' log-probabilities, K x C of them.

    Its strength of regularization is the best of three in a cross-validation within these images.
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
    return np.concatenate(list(log_softmax(np.asarray(logits, float), axis=2)), axis=1)


def averaging(choose: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], Combine]:
    """Make of a function that chooses weights one that gives the average with these weights."""

    def fit(logits: np.ndarray, labels: np.ndarray) -> Combine:
        weights = choose(logits, labels)
        return lambda logits: weighted_softmax(logits, weights)

    return fit


def cross_validate(
    fit: Callable[[np.ndarray, np.ndarray], Combine], logits: np.ndarray, labels: np.ndarray, folds: int = 5
) -> np.ndarray:
    """Probabilities (N,C) for each image from an ensemble that was fitted without it and its fold.

    Judged this way, a method gets no credit for fitting the accidents of the images it chose its weights on.
    """
    probs = np.zeros(logits.shape[1:])
    for kept, left_out in StratifiedKFold(folds, shuffle=True, random_state=0).split(labels, labels):
        probs[left_out] = fit(logits[:, kept], labels[kept])(logits[:, left_out])
    return probs


def judge(
    labels: np.ndarray, predicted: np.ndarray, reference: np.ndarray, has_copy_in_train: np.ndarray
) -> dict[str, float]:
    """One ensemble on one split, and its paired comparison with a reference, both as predicted classes (N,).

    Returns n, accuracy, ci_low, ci_high, macro_f1 and accuracy_no_duplicates as metrics.summarize; the difference in
    accuracy to the reference with the 95 % interval of a paired bootstrap; p_value of McNemar's test.
    """
    summary = metrics.summarize(labels, np.eye(len(EMOTIONS))[predicted][None], has_copy_in_train)
    kept = ("n", "accuracy", "ci_low", "ci_high", "macro_f1", "accuracy_no_duplicates")
    paired = (predicted == labels).astype(float) - (reference == labels)
    low, high = metrics.bootstrap_ci(lambda rows: paired[rows].mean(), len(labels))
    return {key: summary[key] for key in kept} | {
        "difference": float(paired.mean()),
        "difference_low": low,
        "difference_high": high,
        "p_value": metrics.mcnemar(labels, predicted, reference)["p_value"],
    }


def optimism(hits: np.ndarray, repeats: int = 200, seed: int = 0) -> float:
    """By how much a score flatters the best of M candidates when they are picked and judged on the same images, 0 to 1.

    hits: (M,N) bool, which images each gets right. Mean over random halves of the images of: accuracy of the best on
    the half on which it was picked, minus its accuracy on the other half, of the size of one half.
    """
    n = hits.shape[1]
    rng = np.random.default_rng(seed)
    picked_on = np.array(
        [rng.permutation(n) < n // 2 for _ in range(repeats)], np.float32
    )  # (repeats,N): random halves
    right = hits.astype(np.float32)
    here, there = right @ picked_on.T / (n // 2), right @ (1 - picked_on.T) / (n - n // 2)  # (M,repeats): accuracies
    best = here.argmax(0)
    repeat = np.arange(repeats)
    return float((here[best, repeat] - there[best, repeat]).mean())
