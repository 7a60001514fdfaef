"""The training loop: it learns, resumes bit for bit, and fails with a sentence instead of a surprise."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fer_utils import checkpoints, train
from fer_utils.augment import NO_AUGMENT
from fer_utils.checkpoints import TrainingError, load_weights, save_weights
from fer_utils.models import build_model
from fer_utils.optim import learning_rate
from fer_utils.predict import predict_logits
from fer_utils.train import TrainConfig, fit, set_seed


def toy_faces(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright bar whose height tells the class: learnable in a few steps."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, n)
    images = rng.integers(0, 60, (n, 48, 48)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[6 * label : 6 * label + 6] += 190
    return images, labels


TRAIN, VAL = toy_faces(160, 0), toy_faces(64, 1)
CONFIG = TrainConfig(epochs=3, batch_size=32, lr=0.02, precision="fp32")


class Small(nn.Module):
    """A network that trains in milliseconds and has what makes resuming hard: dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 6, stride=6), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 7)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def new_model() -> Small:
    set_seed(5)
    return Small()


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_learns_and_keeps_the_best_epoch_on_val():
    model = new_model()
    result = fit(model, TRAIN, VAL, TrainConfig(epochs=8, batch_size=32, lr=0.05, augment=NO_AUGMENT, precision="fp32"))
    measured = (predict_logits(model, VAL[0]).argmax(1) == VAL[1]).mean()
    assert result.history.val_accuracy.max() > 0.9
    assert measured == pytest.approx(result.history.val_accuracy.max())
    assert list(result.history.epoch) == list(range(1, 9))


def test_baseline_network_trains():
    result = fit(build_model("baseline_cnn"), TRAIN, VAL, TrainConfig(epochs=1, batch_size=32))
    assert np.isfinite(result.history.train_loss).all() and result.precision in ("fp32", "bf16")


def test_one_cycle_rises_to_its_peak_and_ends_at_zero():
    rates = [learning_rate(step, 100, [], CONFIG) for step in range(100)]
    assert max(rates) == pytest.approx(CONFIG.lr) and rates.index(max(rates)) == 15
    assert rates[0] == pytest.approx(CONFIG.lr / 25) and rates[-1] < CONFIG.lr / 500
    assert all(np.diff(rates[:15]) > 0) and all(np.diff(rates[15:]) < 0)


def test_same_seed_same_weights_other_seed_other_weights():
    runs = []
    for seed in (0, 0, 1):
        model = new_model()
        fit(model, TRAIN, VAL, TrainConfig(epochs=2, batch_size=32, seed=seed, precision="fp32"))
        runs.append(weights_of(model))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


@pytest.mark.parametrize("killed_after", [1, 2])
def test_resumed_training_equals_uninterrupted_training(tmp_path, capsys, killed_after):
    whole, resumed = new_model(), new_model()
    expected = fit(whole, TRAIN, VAL, CONFIG, checkpoint=tmp_path / "whole.pt")
    fit(resumed, TRAIN, VAL, CONFIG, checkpoint=tmp_path / "cut.pt", on_epoch=lambda row: row["epoch"] == killed_after)
    fresh = new_model()
    result = fit(fresh, TRAIN, VAL, CONFIG, checkpoint=tmp_path / "cut.pt")
    assert f"resumed after epoch {killed_after}" in capsys.readouterr().out
    assert same(weights_of(fresh), weights_of(whole))
    columns = ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    assert result.history[columns].equals(expected.history[columns])


def test_finished_run_is_loaded_not_repeated(tmp_path):
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=tmp_path / "run.pt")
    epochs = []
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=tmp_path / "run.pt", on_epoch=epochs.append)
    assert epochs == []


def test_truncated_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    path = tmp_path / "run.pt"
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path, on_epoch=lambda row: row["epoch"] == 2)
    path.write_bytes(path.read_bytes()[:1000])
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path)
    printed = capsys.readouterr().out
    assert "run.pt cannot be read" in printed and "resumed after epoch 1 " in printed


def test_checkpoint_of_other_settings_or_data_is_refused_with_the_difference(tmp_path):
    path = tmp_path / "run.pt"
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path)
    with pytest.raises(TrainingError, match=r"epochs: 3 there, 4 here"):
        fit(new_model(), TRAIN, VAL, TrainConfig(epochs=4, batch_size=32, lr=0.02, precision="fp32"), checkpoint=path)
    with pytest.raises(TrainingError, match="training data"):
        fit(new_model(), toy_faces(160, 9), VAL, CONFIG, checkpoint=path)


def test_weights_of_another_architecture_or_class_order_are_refused(tmp_path, monkeypatch):
    save_weights(new_model(), tmp_path / "small.pt")
    with pytest.raises(TrainingError, match="architecture: Small there, BaselineCNN here"):
        load_weights(build_model("baseline_cnn"), tmp_path / "small.pt")
    monkeypatch.setattr(checkpoints, "EMOTIONS", tuple(reversed(checkpoints.EMOTIONS)))
    with pytest.raises(TrainingError, match="classes"):
        load_weights(new_model(), tmp_path / "small.pt")


def test_saved_weights_come_back(tmp_path):
    model = new_model()
    with torch.no_grad():
        model.layers[0].weight.fill_(0.5)
    save_weights(model, tmp_path / "model.pt")
    assert same(weights_of(load_weights(new_model(), tmp_path / "model.pt")), weights_of(model))


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["CANARY"],)


def test_malicious_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "was_run"))
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"weights": Evil()}))
    with pytest.raises(TrainingError, match="missing or damaged"):
        load_weights(new_model(), tmp_path / "evil.pt")
    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(TrainingError, match="missing or damaged"):
        load_weights(new_model(), tmp_path / "evil.pt")
    assert not (tmp_path / "was_run").exists()


def test_missing_weights_name_the_file(tmp_path):
    with pytest.raises(TrainingError, match=r"nothing\.pt is missing"):
        load_weights(new_model(), tmp_path / "nothing.pt")


def test_loss_that_is_not_finite_stops_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    path, real_step, steps = tmp_path / "run.pt", train.train_step, []

    def step_that_breaks(*args):
        steps.append(1)
        loss, logits = real_step(*args)
        return (loss * float("nan") if len(steps) == 8 else loss), logits

    monkeypatch.setattr(train, "train_step", step_that_breaks)
    with pytest.raises(TrainingError, match=r"nan at step 3 of epoch 2.*epoch 1 is kept"):  # five steps an epoch
        fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path)
    kept = torch.load(path, weights_only=True)
    assert len(kept["history"]) == 1 and all(torch.isfinite(t).all() for t in kept["weights"].values())


def test_gpu_out_of_memory_says_which_batch_to_try(monkeypatch):
    def no_memory(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "train_step", no_memory)
    with pytest.raises(TrainingError, match="batch_size 32; try 16"):
        fit(new_model(), TRAIN, VAL, CONFIG)


def test_cuda_is_not_silently_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train.select_device("auto").type == "cpu"
    with pytest.raises(TrainingError, match="finds no GPU"):
        train.select_device("cuda")
    with pytest.raises(TrainingError, match="gpu"):
        train.select_device("gpu")


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"epochs": 2.5}, {"batch_size": -1}, {"lr": 0}, {"lr": "1e-3"}, {"precision": "fp8"}]
)
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**wrong)


def test_measuring_the_precision_leaves_no_trace():
    model = new_model()
    before, state = weights_of(model), torch.get_rng_state()
    assert train.fastest_precision(model, CONFIG, torch.device("cpu")) in ("fp32", "bf16")
    assert same(before, weights_of(model)) and torch.equal(state, torch.get_rng_state())


def test_checkpoint_names_change_with_settings_and_data(tmp_path):
    name = checkpoints.checkpoint_file(tmp_path, "cnn", CONFIG, "abc")
    assert name == checkpoints.checkpoint_file(tmp_path, "cnn", CONFIG, "abc")
    assert name != checkpoints.checkpoint_file(tmp_path, "cnn", CONFIG, "abd")
    assert name != checkpoints.checkpoint_file(tmp_path, "cnn", TrainConfig(epochs=4), "abc")
