"""Ensembles: averages and weights with known answers, honest judging, and refusal of logits that do not fit."""

import numpy as np
import pytest
from helpers import tiny_faces

from fer_utils import ensemble, predict
from fer_utils.errors import DataError
from fer_utils.predict import Predictions

RNG = np.random.default_rng(0)
LABELS = np.arange(210) % 7


def noisy(signal, seed=0, labels=LABELS):
    """Logits (N,7) that point to the label, `signal` strong, in noise of standard deviation 1."""
    return signal * np.eye(7)[labels] + np.random.default_rng(seed).normal(size=(len(labels), 7))


def test_weighted_softmax_by_hand():
    logits = [np.log([[0.8, 0.2]]), np.log([[0.4, 0.6]])]
    assert np.allclose(ensemble.weighted_softmax(logits, [0.25, 0.75]), [[0.5, 0.5]])
    assert np.allclose(ensemble.weighted_softmax(logits, [0, 1]), [[0.4, 0.6]])


def test_weights_that_do_not_sum_to_one_are_normalized_and_said(capsys):
    assert np.allclose(ensemble.normalize_weights([0.45, 0.55]), [0.45, 0.55])
    assert capsys.readouterr().out == ""
    assert np.allclose(ensemble.normalize_weights([1, 3]), [0.25, 0.75])
    assert "the weights sum to 4, not to 1" in capsys.readouterr().out


@pytest.mark.parametrize("weights", [[0, 0], [-0.5, 1.5], [np.nan, 1], [np.inf, 1]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="must be 0 or more"):
        ensemble.normalize_weights(weights)


def test_the_number_of_weights_must_fit():
    with pytest.raises(ValueError, match="2 networks need as many weights, not 3"):
        ensemble.weighted_softmax([np.zeros((1, 7))] * 2, [1, 1, 1])


def test_fitted_weights_are_the_minimum():
    logits = np.stack([noisy(signal, seed) for seed, signal in enumerate((2, 2, 1, 0.5, 0))])
    weights = ensemble.fit_weights(logits, LABELS)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    # At the minimum of this convex loss, the mean of p_k / mixture is 1 for all that are used, and less for the rest.
    probs = ensemble.labeled_probs(logits, LABELS)
    pull = (probs / (weights @ probs)).mean(1)
    assert np.allclose(pull[weights > 0], 1, atol=2e-3) and (pull <= 1 + 2e-3).all()
    assert 0 < (weights > 0).sum() < 5


def test_fitted_weights_by_hand():
    # Networks that give the label 0.9 and 0.1 on three images, and the other way round on one: minimum of
    # -3 ln(0.1 + 0.8 w) - ln(0.9 - 0.8 w), where 3 (0.9 - 0.8 w) = 0.1 + 0.8 w.
    p = np.array([[0.9, 0.9, 0.9, 0.1], [0.1, 0.1, 0.1, 0.9]])
    logits = np.log(np.stack([p, 1 - p], axis=2))
    assert ensemble.fit_weights(logits, np.zeros(4, int))[0] == pytest.approx(2.6 / 3.2, abs=1e-3)


def test_a_useless_network_gets_no_weight():
    logits = np.stack([noisy(3, 0), noisy(0, 1) * 3])
    assert ensemble.fit_weights(logits, LABELS).tolist() == [1, 0]


def test_single_best_goes_by_accuracy_and_then_by_loss():
    good, better = noisy(2, 1), noisy(4, 2)
    assert ensemble.single_best(np.stack([good, better]), LABELS).tolist() == [0, 1]
    assert ensemble.single_best(np.stack([good * 0.01, good]), LABELS).tolist() == [0, 1]  # same answers


def test_best_pair_tries_every_pair():
    logits = np.stack([noisy(1, seed) for seed in range(6)])
    losses = {
        (i, j): ensemble.mean_loss(LABELS, ensemble.weighted_softmax(logits[[i, j]], [0.5, 0.5]))
        for j in range(6)
        for i in range(j)
    }
    assert np.flatnonzero(ensemble.best_pair(logits, LABELS)).tolist() == list(min(losses, key=losses.get))
    with pytest.raises(ValueError, match="only one"):
        ensemble.best_pair(logits[:1], LABELS)


def test_greedy_selection_starts_with_the_best_and_improves():
    logits = np.stack([noisy(signal, seed) for seed, signal in enumerate((1, 1.6, 1.5, 0))])
    first = ensemble.greedy_selection(logits, LABELS, largest=1)
    assert first.tolist() == [0, 1, 0, 0]
    losses = [
        ensemble.mean_loss(LABELS, ensemble.weighted_softmax(logits, ensemble.greedy_selection(logits, LABELS, k)))
        for k in (1, 2, 3, 20)
    ]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    weights = ensemble.greedy_selection(logits, LABELS)
    assert weights[3] == 0 and weights.sum() == pytest.approx(1)


def test_all_subsets():
    subsets = ensemble.all_subsets(3)
    assert len({tuple(row) for row in subsets}) == len(subsets) == 7 and subsets.any(1).all()
    with pytest.raises(ValueError, match="32,767 subsets"):
        ensemble.all_subsets(15)


def test_subset_hits_are_those_of_the_plain_average():
    logits = np.stack([noisy(1, seed) for seed in range(3)])
    subset = np.array([[True, False, True]])
    expected = ensemble.weighted_softmax(logits, [0.5, 0, 0.5]).argmax(1) == LABELS
    assert (ensemble.subset_hits(logits, LABELS, subset)[0] == expected).all()


def test_pairs_of_twins_gain_nothing_and_pairs_of_complements_do():
    twin = noisy(2, 0)
    table = ensemble.compare_pairs(np.stack([twin, twin, noisy(2, 1)]), LABELS, ["05_a", "05_a", "06_b"])
    assert table.kind.tolist() == ["same model, other seed", "other notebook", "other notebook"]
    assert table.loc[0, ["disagree", "gap", "gain"]].tolist() == [0, 0, 0]
    assert (table.disagree[1:] > 0).all() and (table.gain[1:] > 0).all()


def test_stacking_repairs_what_no_average_can():
    shuffled = np.roll(noisy(4, 1), 1, axis=1)  # always names the next class
    logits = np.stack([shuffled, noisy(0.1, 2)])
    stacked = ensemble.fit_stacking(logits, LABELS)(logits)
    assert np.allclose(stacked.sum(1), 1) and (stacked.argmax(1) == LABELS).mean() > 0.95
    assert (ensemble.weighted_softmax(logits, ensemble.fit_weights(logits, LABELS)).argmax(1) == LABELS).mean() < 0.5


def test_cross_validation_never_judges_an_image_it_was_fitted_on():
    seen = []

    def fit(logits, labels):
        ids = set(logits[0, :, 0].tolist())
        seen.append(ids)

        def combine(logits):
            assert not ids & set(logits[0, :, 0].tolist())
            return logits[0]

        return combine

    logits = np.repeat(np.arange(210.0)[None, :, None], 7, axis=2)
    assert (ensemble.cross_validate(fit, logits, LABELS) == logits[0]).all()  # each image once, in its place
    assert len(seen) == 5 and all(len(ids) == 168 for ids in seen)


def test_cross_validation_gives_no_credit_for_learning_by_heart():
    noise = np.stack([noisy(0, seed) for seed in range(40)])
    fitted = ensemble.fit_stacking(noise, LABELS)(noise)
    judged = ensemble.cross_validate(ensemble.fit_stacking, noise, LABELS)
    assert (fitted.argmax(1) == LABELS).mean() > (judged.argmax(1) == LABELS).mean() + 0.1


def test_optimism_of_many_equal_candidates_and_of_one():
    coins = RNG.random((500, 400)) < 0.6  # the best of 500 on 200 images: about 3 standard errors of 3.5 points
    assert 0.07 < ensemble.optimism(coins) < 0.14
    assert abs(ensemble.optimism(coins[:1])) < 0.01


def test_judge_is_paired():
    labels = np.arange(700) % 7
    reference = np.where(np.arange(700) < 350, labels, (labels + 1) % 7)
    better = np.where(np.arange(700) < 385, labels, (labels + 1) % 7)  # right wherever the reference is, and on 35 more
    result = ensemble.judge(labels, better, reference, np.zeros(700, bool))
    assert (result["n"], result["accuracy"], result["difference"]) == (700, 0.55, pytest.approx(0.05))
    assert 0.03 < result["difference_low"] < 0.05 < result["difference_high"] < 0.07  # unpaired: -0.002 to 0.102
    assert result["p_value"] == pytest.approx(2 * 0.5**35)


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Logits of 04_a and 05_b for tiny_faces()."""
    for name in ("04_a", "05_b"):
        save(tmp_path, name)
    return tmp_path


def save(folder, name, val=(2, 28, 7), test=(2, 28, 7), faces=None, seeds=(0, 1)):
    fingerprint = (faces or tiny_faces()).fingerprint
    Predictions(RNG.normal(size=val), RNG.normal(size=test), seeds, fingerprint).save(folder / f"{name}.npz")


def test_models_are_read_and_a_missing_one_is_named(folder):
    models, problems = ensemble.load_models(folder, tiny_faces(), ["04_a", "05_b", "06_c"])
    assert list(models) == ["04_a", "05_b"] and models["04_a"].val.shape == (2, 28, 7)
    assert list(problems) == ["06_c"] and "06_c.npz is not in" in problems["06_c"]


def problem(folder):
    models, problems = ensemble.load_models(folder, tiny_faces(), ["04_a", "05_b", "06_bad"])
    assert list(models) == ["04_a", "05_b"]
    return problems["06_bad"]


def test_logits_of_other_data_are_refused_by_name(folder):
    save(folder, "06_bad", faces=tiny_faces(seed=1))
    assert "06_bad.npz was made on other data" in problem(folder)


def test_logits_of_another_class_order_are_refused_by_name(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(predict, "EMOTIONS", tuple(reversed(predict.EMOTIONS)))
        save(folder, "06_bad")
    assert "06_bad.npz has the class order" in problem(folder)


def test_logits_of_another_split_are_refused_by_name(folder):
    save(folder, "06_bad", test=(2, 27, 7))
    assert "06_bad.npz has test logits of shape (2, 27, 7)" in problem(folder)


def test_damaged_logits_are_refused_by_name(folder):
    data = (folder / "04_a.npz").read_bytes()
    (folder / "06_bad.npz").write_bytes(data[: len(data) // 2])
    assert "06_bad.npz is damaged" in problem(folder)
    (folder / "06_bad.npz").write_bytes(b"")
    assert "06_bad.npz is damaged" in problem(folder)
    np.savez(folder / "06_bad.npz", val=np.zeros(3))
    assert "06_bad.npz is damaged" in problem(folder)


def test_logits_that_are_no_numbers_are_refused_by_name(folder):
    with np.load(folder / "05_b.npz") as arrays:
        np.savez(folder / "06_bad.npz", **(dict(arrays) | {"val": np.full((2, 28, 7), np.nan)}))
    assert "06_bad.npz: the predictions have val logits that are not finite" in problem(folder)


def test_the_same_logits_count_once(folder):
    (folder / "06_bad.npz").write_bytes((folder / "05_b.npz").read_bytes())
    assert "the same logits as 05_b.npz" in problem(folder)


def test_one_model_is_no_ensemble(folder):
    with pytest.raises(DataError, match=r"needs two models .*06_c\.npz is not in"):
        ensemble.load_models(folder, tiny_faces(), ["04_a", "06_c"])
