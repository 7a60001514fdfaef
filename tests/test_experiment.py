"""The bookkeeping of experiments: runs that are not trained twice, published rows, paired comparisons, errors."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny_faces
from scipy.special import softmax
from torchvision.models import resnet18

from fer_utils import metrics
from fer_utils.experiment import Experiment, Trained
from fer_utils.models import build_model, make_spec
from fer_utils.models.weights import load_model, save_compact, save_weights
from fer_utils.predict import load_predictions
from fer_utils.report import Report
from fer_utils.training import TrainConfig

CONFIG = TrainConfig(epochs=2, batch_size=7, precision="fp32")


@pytest.fixture
def experiment(tmp_path):
    dataset = tiny_faces()
    report = Report("04_baseline_cnn", dataset, profile="sample", device="cpu", out=tmp_path)
    return Experiment(report, dataset, torch.device("cpu"))


def train(experiment, name="small", seeds=(0, 1), **options):
    return experiment.train({name: experiment.runs(name, make_spec("baseline_cnn"), CONFIG, seeds, **options)})[name]


def fixed(experiment, name, correct):
    """A model whose seeds get exactly these test images right: (S,n) bool."""
    labels = experiment.dataset.subset("test")[1]
    predicted = np.where(correct, labels, (labels + 1) % 7)
    return Trained(name, make_spec("baseline_cnn"), (0,), [], [], 1, logits={"test": np.eye(7)[predicted] * 3})


def test_a_model_is_trained_for_each_seed_and_not_trained_again(experiment, capsys):
    first = train(experiment)
    again = train(experiment)
    assert first.seeds == (0, 1) and len(first.models) == 2 and first.epochs == 2
    assert "epoch" in capsys.readouterr().out
    for one, other in zip(first.models, again.models, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    for one, other in zip(first.histories, again.histories, strict=True):
        pd.testing.assert_frame_equal(one, other)  # seconds as well: nothing was trained


@pytest.mark.parametrize("changed", ["images", "targets", "backbone", "imagenet", "spec"])
def test_whatever_decides_the_outcome_has_a_checkpoint_of_its_own(experiment, changed):
    spec, options = make_spec("resnet18"), {}
    images, labels = experiment.train_set
    if changed == "images":
        options["train"] = images[:7], labels[:7]
    elif changed == "targets":
        options["train"] = images, labels[::-1].copy()
    elif changed == "backbone":
        options["backbone"] = experiment.runs("x", spec, CONFIG, [5])[0].model.backbone.state_dict()
    elif changed == "imagenet":
        options["imagenet"] = resnet18(weights=None).state_dict()
    else:
        spec = make_spec("resnet18", stem="middle")
    before = experiment.runs("x", make_spec("resnet18"), CONFIG, [0])[0].checkpoint
    assert experiment.runs("x", spec, CONFIG, [0], **options)[0].checkpoint != before


def test_what_does_not_resume_writes_no_checkpoint(experiment, tmp_path):
    train(experiment, resumable=False)
    assert not (tmp_path / "training").exists()


def test_models_of_rafdb_say_so_in_the_summary_only(experiment, tmp_path):
    on_rafdb = replace(experiment.dataset, form="rafdb")
    table = Experiment(experiment.report, on_rafdb, experiment.device).publish([train(experiment)])
    assert set(table.model) == {"small"}
    assert {row["model"] for row in experiment.report.summary_rows} == {"small_on_rafdb"}
    assert (tmp_path / "predictions" / "04_small.npz").is_file()


def test_published_rows_and_logits_are_those_of_the_models(experiment, tmp_path):
    model = train(experiment)
    table = experiment.publish([model])
    assert list(table.split) == ["val", "test"] and set(table.model) == {"small"} and set(table.seeds) == {2}
    labels = experiment.dataset.subset("test")[1]
    expected = np.mean([metrics.accuracy(labels, model.predicted("test", seed)) for seed in (0, 1)])
    assert table.accuracy.iloc[1] == pytest.approx(expected)
    saved = load_predictions(tmp_path / "predictions" / "04_small.npz", experiment.dataset)
    assert saved.spec == make_spec("baseline_cnn") and saved.seeds == (0, 1)
    assert np.array_equal(saved.test, model.logits["test"]) and np.array_equal(saved.val, model.logits["val"])


def test_a_comparison_is_paired_by_seed_and_by_image(experiment):
    n = len(experiment.dataset.where("test"))
    correct = np.zeros((2, n), bool)
    correct[:, : n // 2] = True
    row = experiment.compare(fixed(experiment, "a", correct), fixed(experiment, "b", ~correct))
    assert row["mean"] == pytest.approx((n // 2 - (n - n // 2)) / n)
    assert (row["only_a"], row["only_b"], row["n"]) == (n // 2, n - n // 2, n)
    assert row["verdict"] == "cannot be shown with 2 seeds"


def test_a_comparison_can_leave_out_images(experiment):
    n = len(experiment.dataset.where("test"))
    correct = np.zeros((2, n), bool)
    correct[:, : n // 2] = True
    kept = np.arange(n) < n // 2
    row = experiment.compare(fixed(experiment, "a", correct), fixed(experiment, "b", ~correct), kept)
    assert (row["only_a"], row["only_b"], row["n"], row["mean"]) == (n // 2, 0, n // 2, 1)


def test_six_seeds_can_show_a_difference_and_are_needed_for_it(experiment):
    n = len(experiment.dataset.where("test"))
    good, bad = np.ones((6, n), bool), np.ones((6, n), bool)
    for seed in range(6):
        bad[seed, : 2 + seed] = False
    better, worse = fixed(experiment, "a", good), fixed(experiment, "b", bad)
    assert experiment.compare(better, worse)["verdict"] == "better"
    assert experiment.compare(worse, better)["verdict"] == "worse"
    assert experiment.compare(better, better)["verdict"] == "no difference shown"
    five = [fixed(experiment, name, correct[:5]) for name, correct in (("a", good), ("b", bad))]
    assert experiment.compare(*five)["verdict"] == "cannot be shown with 5 seeds"


def test_errors_are_reported_with_their_label_and_confidence(experiment, tmp_path):
    n = len(experiment.dataset.where("test"))
    correct = np.ones((1, n), bool)
    correct[0, 3] = False
    model = fixed(experiment, "a", correct)
    recall = experiment.report_errors(model)
    assert recall.hits.iloc[-1] == n - 1
    shown = pd.read_csv(tmp_path / "figures" / "04_worst_mistakes.csv")
    assert len(shown) == 1 and shown.name[0] == experiment.dataset.names[experiment.dataset.where("test")][3]
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {
        "04_recall.png",
        "04_confusion_matrix.png",
        "04_worst_mistakes.png",
    }


@pytest.mark.parametrize(
    "difference, p_value, verdict",
    [
        (0.01, 0.2, "no difference shown between these networks"),
        (0.01, 0.01, "this network is better (one seed)"),
        (-0.01, 0.01, "this network is worse (one seed)"),
    ],
)
def test_one_seed_speaks_of_its_networks_only(difference, p_value, verdict):
    assert metrics.networks_verdict(difference, p_value) == verdict


def test_runs_do_not_share_the_network_that_they_follow(experiment):
    follow = build_model("landmark_net")
    spec = make_spec("local_global", regions="landmarks")
    one, other = experiment.runs("x", spec, CONFIG, [0, 1], landmarks=follow)
    parts = [follow, one.model.landmarks, other.model.landmarks]
    assert len({next(part.parameters()).data_ptr() for part in parts}) == 3
    assert all(torch.equal(*pair) for pair in zip(follow.parameters(), one.model.landmarks.parameters(), strict=True))


def test_an_ensemble_averages_log_probabilities_of_all_seeds_and_adds_up_costs(experiment):
    both, one = train(experiment, "both"), train(experiment, "one", seeds=(2,))
    together = experiment.ensemble("ensemble", [both, one])
    rows = experiment.publish([both, one, together]).query("split == 'test'").set_index("model")
    logits = np.concatenate([both.logits["test"], one.logits["test"]]).astype(float)  # (3,n,7)
    by_hand = np.log(softmax(logits, axis=2)).mean(0)
    np.testing.assert_allclose(together.logits["test"][0], by_hand, atol=2e-3)  # half precision
    assert rows.gmacs["ensemble"] == pytest.approx(3 * rows.gmacs["one"]) and np.isnan(rows.epochs["ensemble"])
    seconds = pd.DataFrame(experiment.report.summary_rows).query("split == 'val'").set_index("model").train_seconds
    assert seconds["ensemble"] == pytest.approx(2 * seconds["both"] + seconds["one"])
    saved = load_predictions(experiment.report.out / "predictions" / "04_ensemble.npz", experiment.dataset)
    assert saved.spec is None and saved.seeds == (0,)


def test_weights_say_what_they_were_trained_on(experiment, tmp_path):
    model = train(experiment, seeds=(3,))
    save_weights(model.models[0], tmp_path / "weights.pt")
    save_compact(load_model(tmp_path / "weights.pt"), tmp_path / "weights.safetensors")
    for file in ("weights.pt", "weights.safetensors"):
        origin = load_model(tmp_path / file).origin
        assert origin["fingerprint"] == experiment.dataset.fingerprint and origin["data"] == "csv"
        assert (origin["train_images"], origin["val_images"], origin["settings"]["seed"]) == (28, 28, 3)
        assert origin["val"] == pytest.approx(model.val_accuracy[0]) and origin["metric"] == "accuracy"
