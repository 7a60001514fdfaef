"""Trained networks: those that are there are found, the others named; what they say together, and where they look."""

import numpy as np
import pytest
import torch

from fer_utils import cam, classifiers, paths
from fer_utils.augment import to_float
from fer_utils.classifiers import FILES
from fer_utils.models import build_model
from fer_utils.models.weights import save_compact, save_weights
from fer_utils.predict import predict_logits

CROPS = np.random.default_rng(0).integers(0, 256, (5, 48, 48)).astype(np.uint8)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No networks but those of the test."""
    monkeypatch.setattr(paths, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(paths, "ASSETS", tmp_path)


@pytest.fixture
def leave(tmp_path):
    """A function that leaves a network where the notebook that trains it would."""

    def save(name, model):
        save_weights(model, tmp_path / "outputs" / "checkpoints" / "/".join(FILES[name]))
        return model

    return save


def test_without_networks_there_is_none_and_an_instruction(capsys):
    assert classifiers.load_classifiers("reports") == {}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FILES)
    assert "notebook 06_efficientnet_ablation has not trained it yet" in lines[-1]
    assert "04_baseline_cnn" in classifiers.NO_CLASSIFIER


def test_networks_that_are_there_are_loaded(leave, capsys):
    saved = {
        "baseline_cnn": leave("baseline_cnn", build_model("baseline_cnn")),
        "attention_resnet18": leave("attention_resnet18", build_model("resnet18", attention="gates", stem="middle")),
        "efficientnet_crp": leave("efficientnet_crp", build_model("efficientnet_b0", stem="small")),
    }
    found = classifiers.load_classifiers("reports")
    assert list(found) == list(saved)
    assert len(capsys.readouterr().out.splitlines()) == len(FILES) - len(saved)
    order = ["efficientnet_crp", "best_resnet18", "baseline_cnn"]
    assert list(classifiers.load_classifiers("reports", names=order)) == ["efficientnet_crp", "baseline_cnn"]
    assert capsys.readouterr().out.startswith("best_resnet18 is left out")
    for name, model in found.items():
        assert not model.training and not any(part.training for part in model.modules())
        assert np.allclose(predict_logits(model, CROPS), predict_logits(saved[name], CROPS))


def test_damaged_files_and_other_networks_are_left_out_and_named(leave, tmp_path, capsys):
    leave("baseline_cnn", build_model("landmark_net"))
    leave("best_resnet18", build_model("resnet18"))
    (tmp_path / "outputs" / "checkpoints" / "/".join(FILES["best_resnet18"])).write_bytes(b"PK")
    assert classifiers.load_classifiers("reports") == {}
    said = capsys.readouterr().out
    assert "baseline_cnn is left out" in said and "holds a landmark_net" in said
    assert "best_resnet18 is left out" in said and "is damaged" in said


def by_hand(tmp_path, data):
    """A network that a run by hand has left in outputs/my_run."""
    model = build_model("baseline_cnn")
    model.origin = {"data": data, "train_images": 700, "val_images": 154, "val": 0.5, "date": "2026-01-31"}
    save_weights(model, tmp_path / "outputs" / "my_run" / "checkpoints" / "baseline_cnn_seed0.pt")
    return model


@pytest.mark.parametrize("data, inputs, used", [("sample", "reports", False), ("csv", "reports", True)])
def test_a_run_by_hand_on_the_sample_does_not_replace_what_was_trained_on_faces(tmp_path, data, inputs, used):
    shipped = build_model("baseline_cnn")
    save_compact(shipped, tmp_path / "models" / "baseline_cnn_seed0.safetensors")
    mine = by_hand(tmp_path, data)
    found = classifiers.load_classifiers(inputs, names=["baseline_cnn"])["baseline_cnn"]
    expected = mine if used else shipped
    assert np.allclose(predict_logits(found, CROPS), predict_logits(expected, CROPS), atol=1e-2)
    asked_for = classifiers.load_classifiers("outputs/my_run", names=["baseline_cnn"])["baseline_cnn"]
    assert np.allclose(predict_logits(asked_for, CROPS), predict_logits(mine, CROPS))


def test_a_network_says_what_it_was_trained_on(tmp_path):
    by_hand(tmp_path, "sample")
    found = classifiers.load_classifiers("outputs/my_run", names=["baseline_cnn"])["baseline_cnn"]
    said = "trained on the embedded sample (700 images, 2026-01-31); right for 50.0 % of 154 validation images"
    assert classifiers.describe_origin(found) == said
    found.origin = {}
    assert classifiers.describe_origin(found) == "its training was not recorded"


def test_faces_of_one_batch_get_the_answers_they_would_get_alone():
    models = {"a": build_model("baseline_cnn"), "b": build_model("baseline_cnn")}
    together = classifiers.classify(models, CROPS, "cpu")
    alone = [classifiers.classify(models, CROPS[[i]], "cpu") for i in range(5)]
    for name in models:
        assert np.allclose(together[name], np.concatenate([one[name] for one in alone]), atol=1e-5)
        assert np.allclose(together[name].sum(1), 1)
    assert not np.allclose(together["a"], together["b"])
    assert classifiers.classify(models, CROPS[:0], "cpu")["a"].shape == (0, 7)


def test_ensemble_is_the_mean():
    probs = {"a": np.array([[0.8, 0.2]]), "b": np.array([[0.4, 0.6]])}
    assert np.allclose(classifiers.average(probs), [[0.6, 0.4]])


@pytest.mark.parametrize("kind", ["baseline_cnn", "resnet18", "efficientnet_b0", "small_resnet"])
def test_explanations_are_the_maps_of_the_answer_scaled(kind):
    torch.manual_seed(1)  # some random networks have only evidence against their prediction
    model = build_model(kind).eval()
    before = predict_logits(model, CROPS)
    maps = classifiers.explain(model, CROPS)
    assert maps.shape == (5, 48, 48) and maps.min() >= 0 and maps.max() <= 1 + 1e-6
    faces, targets = to_float(torch.from_numpy(CROPS)), torch.from_numpy(before.argmax(1))
    _, found = cam.activations_and_gradients(model, faces, list(cam.LAYERS[type(model)]), targets)
    given = [cam.grad_cam(*pair).numpy() for pair in found.values()]
    expected = cam.upsample([layer for layer in given if layer.shape[-1] >= classifiers.LEAST_CELLS][-1])
    assert expected.max() > 0
    assert np.allclose(maps * expected.max((1, 2), keepdims=True), expected, atol=1e-5)
    assert np.array_equal(predict_logits(model, CROPS), before), "explaining does not change the network"
