"""The training loop: it learns, resumes bit for bit, and fails with a sentence instead of a surprise."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import toy_faces
from torch import nn

from fer_utils import device
from fer_utils.augment import NO_AUGMENT, Augment
from fer_utils.device import set_seed
from fer_utils.errors import TrainingError
from fer_utils.models import build_model
from fer_utils.models.weights import save_weights
from fer_utils.predict import predict_logits, predict_outputs
from fer_utils.training import TrainConfig, fit, fit_all, seed_runs
from fer_utils.training.optim import learning_rate
from fer_utils.training.step import TrainingStep, sides, train_step
from fer_utils.training.tasks import balanced_weights, classification, cross_entropy, landmarks

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


OPTIONS = {
    "adamw": {"optimizer": "adamw", "lr": 0.005},
    "decay_all": {"decay_all": True, "weight_decay": 0.1},
    "cosine": {"schedule": "cosine", "final": 0.1},
    "plateau": {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.3, "lr": 0.3},
    "clip": {"clip": 0.5},
    "ema": {"ema": 0.8},
    "focal": {"focal_gamma": 2.0},
    "balanced": {"class_weights": "balanced"},
    "alternate": {"augment": Augment(alternate=True)},
    "erase": {"augment": Augment(erase=0.5)},
    "mixup": {"augment": Augment(mixup=0.4)},
    "cutmix": {"augment": Augment(cutmix=1.0)},
    "sampling": {"sampling": "balanced"},
    "weak_epochs": {"weak_epochs": 2},
}
EVERYTHING = {key: value for options in OPTIONS.values() for key, value in options.items()} | {
    "schedule": "plateau",
    "lr": 0.005,
    "weight_decay": 0.01,
    "patience": 3,
    "augment": Augment(alternate=True, erase=0.5, mixup=0.4, cutmix=1.0),
}


@pytest.mark.parametrize("killed_after", [1, 2])
@pytest.mark.parametrize("options", [{}, *OPTIONS.values(), EVERYTHING], ids=["plain", *OPTIONS, "everything"])
def test_resumed_training_equals_uninterrupted_training(tmp_path, capsys, killed_after, options):
    config, cut = replace(CONFIG, **options), tmp_path / "cut.pt"
    whole, resumed = new_model(), new_model()
    expected = fit(whole, TRAIN, VAL, config, checkpoint=tmp_path / "whole.pt")
    fit(new_model(), TRAIN, VAL, config, checkpoint=cut, on_epoch=lambda row: row["epoch"] == killed_after)
    result = fit(resumed, TRAIN, VAL, config, checkpoint=cut)
    assert f"resumed after epoch {killed_after}" in capsys.readouterr().out
    assert same(weights_of(resumed), weights_of(whole))
    assert result.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))
    states = [torch.load(path, weights_only=True) for path in (tmp_path / "whole.pt", cut)]
    assert same(*(list(state["weights"].values()) for state in states))  # of the last epoch, not only of the best
    assert torch.equal(*(state["generator"] for state in states))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_changes_what_is_learned(options):
    plain, model = new_model(), new_model()
    fit(plain, TRAIN, VAL, replace(CONFIG, lr=options.get("lr", CONFIG.lr)))
    fit(model, TRAIN, VAL, replace(CONFIG, **options))
    assert not same(weights_of(plain), weights_of(model))


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


def test_the_state_before_the_newest_is_dropped_when_training_is_complete(tmp_path):
    path = tmp_path / "run.pt"
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path, on_epoch=lambda row: row["epoch"] == 2)
    assert (tmp_path / "run.previous").exists()
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.pt"
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path)
    return path


@pytest.mark.parametrize(
    "options, difference",
    [
        ({"epochs": 4}, "epochs: 3 there, 4 here"),
        ({"optimizer": "adamw"}, "optimizer: sgd there, adamw here"),
        ({"schedule": "plateau"}, "schedule: one_cycle there, plateau here"),
        ({"clip": 1.0}, "clip: 0.0 there, 1.0 here"),
        ({"ema": 0.9}, "ema: 0.0 there, 0.9 here"),
        ({"focal_gamma": 2.0}, "focal_gamma: 0.0 there, 2.0 here"),
        ({"class_weights": "balanced"}, "class_weights: none there, balanced here"),
        ({"augment": Augment(mixup=0.2)}, "augment: .*'mixup': 0.0.* there, .*'mixup': 0.2.* here"),
    ],
)
def test_checkpoint_of_other_settings_is_refused_with_the_difference(finished, options, difference):
    before = finished.read_bytes()
    with pytest.raises(TrainingError, match=rf"run\.pt belongs to another run \({difference}"):
        fit(new_model(), TRAIN, VAL, replace(CONFIG, **options), checkpoint=finished)
    assert finished.read_bytes() == before


def test_checkpoint_of_other_data_or_another_network_is_refused(finished):
    for train_set, val_set in ((toy_faces(160, 9), VAL), (TRAIN, toy_faces(len(VAL[0]), 9))):
        with pytest.raises(TrainingError, match="data of train and val"):
            fit(new_model(), train_set, val_set, CONFIG, checkpoint=finished)
    with pytest.raises(TrainingError, match="network: Small there, baseline_cnn here"):
        fit(build_model("baseline_cnn"), TRAIN, VAL, CONFIG, checkpoint=finished)


def test_weights_in_place_of_a_checkpoint_are_refused(tmp_path):
    save_weights(new_model(), tmp_path / "run.pt")
    with pytest.raises(TrainingError, match="belongs to another run"):
        fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=tmp_path / "run.pt")


def test_loss_that_is_not_finite_stops_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    path, real_step, steps = tmp_path / "run.pt", train_step, []

    def step_that_breaks(*args):
        steps.append(1)
        loss, logits = real_step(*args)
        return (loss * float("nan") if len(steps) == 8 else loss), logits

    monkeypatch.setattr("fer_utils.training.step.train_step", step_that_breaks)
    with pytest.raises(TrainingError, match=r"nan at step 3 of epoch 2.*epoch 1 is kept"):  # five steps an epoch
        fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path)
    kept = torch.load(path, weights_only=True)
    assert len(kept["history"]) == 1 and all(torch.isfinite(t).all() for t in kept["weights"].values())


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw"}, {"clip": 1.0}, {**EVERYTHING, "lr": 1.0}])
def test_loss_that_explodes_stops_with_every_optimizer(tmp_path, options):
    path, config = tmp_path / "run.pt", replace(CONFIG, **options)
    fit(new_model(), TRAIN, VAL, config, checkpoint=path, on_epoch=lambda row: True)
    kept, broken = path.read_bytes(), new_model()
    broken.register_forward_hook(lambda module, _, logits: logits * (1e38 if module.training else 1))
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d of epoch 2.*epoch 1 is kept"):
        fit(broken, TRAIN, VAL, config, checkpoint=path)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("last_step", [5, 10, 15])
def test_weights_spoilt_by_the_last_step_of_an_epoch_are_not_kept(tmp_path, monkeypatch, last_step):
    path, real_step, steps = tmp_path / "run.pt", train_step, []

    def step_that_breaks(model, *args):
        steps.append(real_step(model, *args))
        if len(steps) == last_step:
            nn.init.constant_(model.layers[0].weight, float("nan"))
        return steps[-1]

    monkeypatch.setattr("fer_utils.training.step.train_step", step_that_breaks)
    with pytest.raises(TrainingError, match=rf"the loss is nan on val after epoch {last_step // 5}"):
        fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path)
    assert not path.exists() or len(torch.load(path)["history"]) == last_step // 5 - 1


def test_gpu_out_of_memory_says_which_batch_to_try(monkeypatch):
    def no_memory(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fer_utils.training.step.train_step", no_memory)
    with pytest.raises(TrainingError, match="batch_size 32; try batch_size 16"):
        fit(new_model(), TRAIN, VAL, CONFIG)


def test_cuda_is_not_silently_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.select_device("auto").type == "cpu"
    with pytest.raises(TrainingError, match="finds no GPU"):
        device.select_device("cuda")
    with pytest.raises(TrainingError, match="gpu"):
        device.select_device("gpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 2.5},
        {"epochs": True},
        {"batch_size": -1},
        {"patience": -1},
        {"plateau_patience": 1.5},
        {"lr": 0},
        {"lr": "1e-3"},
        {"lr": float("nan")},
        {"warmup": 1.0},
        {"momentum": -0.1},
        {"label_smoothing": 1.0},
        {"ema": 1.0},
        {"warmup_from": 1.1},
        {"final": -0.1},
        {"plateau_factor": 2},
        {"weight_decay": -1e-4},
        {"clip": -1},
        {"clip": float("nan")},
        {"focal_gamma": -1},
        {"optimizer": "adam"},
        {"schedule": "onecycle"},
        {"class_weights": "balance"},
        {"sampling": "oversampling"},
        {"weak_epochs": -1},
        {"precision": "fp8"},
    ],
    ids=str,
)
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"TrainConfig\.{next(iter(wrong))} is "):
        TrainConfig(**wrong)


def test_precision_depends_on_processor_and_network_only(monkeypatch):
    cpu, depthwise = torch.device("cpu"), nn.Conv2d(4, 4, 3, groups=4)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert device.choose_precision(nn.Conv2d(4, 4, 3), cpu) == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert device.choose_precision(nn.Conv2d(4, 4, 3), cpu) == "bf16"
    assert device.choose_precision(nn.Conv2d(1, 4, 3), cpu) == device.choose_precision(new_model(), cpu) == "bf16"
    assert device.choose_precision(nn.Sequential(nn.Conv2d(4, 4, 1), depthwise), cpu) == "fp32"


def test_nothing_stays_frozen_and_no_gradient_stays_in_memory_when_training_is_interrupted():
    def interrupt(row):
        raise KeyboardInterrupt

    model = new_model()
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    with pytest.raises(KeyboardInterrupt):
        fit(model, TRAIN, VAL, replace(CONFIG, lr_factors=((name, 0.0),)), on_epoch=interrupt)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


# ---- What the options do, seen from inside the loop ----


def watch_steps(monkeypatch, look) -> list:
    """Have every step of training followed by look(model, optimizer, inputs, targets, loss); its answers, in a list."""
    real_step, seen = train_step, []

    def watched(model, optimizer, inputs, targets, *args):
        loss, outputs = real_step(model, optimizer, inputs, targets, *args)
        seen.append(look(model, optimizer, inputs, targets, loss))
        return loss, outputs

    monkeypatch.setattr("fer_utils.training.step.train_step", watched)
    return seen


def on_val(real, numbers):
    """A measure or a loss that answers with these numbers on val, one per epoch, and with the real ones in training."""
    left = iter(numbers)

    def answer(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.tensor(next(left)) if len(outputs) == len(VAL[0]) else real(outputs, targets)

    return answer


TASK = classification(CONFIG.label_smoothing)


def accuracies_on_val(*numbers: float):
    return replace(TASK, metric_fn=on_val(TASK.metric_fn, numbers))


def test_judged_and_kept_weights_are_the_moving_average(monkeypatch):
    states = watch_steps(monkeypatch, lambda model, *_: {k: v.clone() for k, v in model.state_dict().items()})
    model, config = new_model(), replace(CONFIG, ema=0.9)
    result = fit(model, TRAIN, VAL, config, task=accuracies_on_val(0.2, 0.9, 0.5))
    average = new_model().state_dict()
    for step, state in enumerate(states[:10]):  # to the end of the second epoch, the best
        decay = min(0.9, (1 + step) / (10 + step))
        average = {k: decay * average[k] + (1 - decay) * v for k, v in state.items()}
    kept = model.state_dict()
    for name in kept:
        if kept[name].is_floating_point():  # the number of batches seen is not
            assert torch.allclose(kept[name], average[name], atol=1e-6), name
    for name in ("layers.0.weight", "layers.1.running_mean", "layers.1.running_var"):  # norms' statistics, too
        assert not torch.allclose(kept[name], states[9][name], atol=1e-4), name
    judged = float(cross_entropy(torch.from_numpy(predict_outputs(model, VAL[0])), torch.from_numpy(VAL[1]), 0.1))
    assert judged == pytest.approx(result.history.val_loss[1], abs=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_average_does_not_disturb_the_weights_that_learn(ema, monkeypatch):
    states = watch_steps(monkeypatch, lambda model, *_: weights_of(model))
    fit(new_model(), TRAIN, VAL, replace(CONFIG, ema=ema))
    fit(new_model(), TRAIN, VAL, CONFIG)
    assert same(states[14], states[29])


def gradient(model: nn.Module) -> torch.Tensor:
    """The gradient of all weights together, as the last step has applied it."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_clip_limits_the_norm_of_the_whole_gradient_and_keeps_its_direction(monkeypatch):
    gradients = watch_steps(monkeypatch, lambda model, *_: gradient(model))
    for clip in (0.0, 0.3, 1e6):
        fit(new_model(), TRAIN, VAL, replace(CONFIG, clip=clip, epochs=1))
    free, clipped, unreached = gradients[:5], gradients[5:10], gradients[10:]
    assert free[0].norm() > 0.3
    assert torch.allclose(clipped[0], 0.3 * free[0] / free[0].norm(), atol=1e-5)
    assert all(g.norm() <= 0.3 + 1e-5 for g in clipped)
    assert all(map(torch.equal, free, unreached))


def test_a_clipped_step_is_as_long_as_the_learning_rate_allows(monkeypatch):
    """With plain SGD, the way the weights go is lr times the norm of the gradient."""
    positions = watch_steps(
        monkeypatch,
        lambda model, optimizer, *_: (
            nn.utils.parameters_to_vector(model.parameters()).detach().clone(),
            float(optimizer.param_groups[0]["lr"]),
        ),
    )
    fit(new_model(), TRAIN, VAL, replace(CONFIG, clip=0.1, momentum=0.0, weight_decay=0.0, epochs=1))
    for (before, _), (after, lr) in itertools.pairwise(positions):
        assert float((after - before).norm()) == pytest.approx(0.1 * lr, rel=1e-2)


@pytest.mark.parametrize(
    "accuracies, patience, epochs, best",
    [
        ([0.1, 0.5, 0.4, 0.3, 0.9, 0.9], 2, 4, 2),
        ([0.5, 0.5, 0.5, 0.9, 0.9, 0.9], 2, 3, 1),  # as good is not better
        ([0.5, 0.4, 0.6, 0.4, 0.7, 0.2], 2, 6, 5),
        ([0.5, 0.4, 0.6, 0.4, 0.7, 0.2], 1, 2, 1),
        ([0.9, 0.1, 0.1, 0.1, 0.1, 0.1], 0, 6, 1),
    ],
)
def test_patience_ends_training(accuracies, patience, epochs, best):
    config = replace(CONFIG, epochs=6, patience=patience)
    result = fit(new_model(), TRAIN, VAL, config, task=accuracies_on_val(*accuracies))
    assert (len(result.history), result.best_epoch) == (epochs, best)


def test_a_run_that_has_stopped_stays_stopped(tmp_path):
    path, config, later = tmp_path / "run.pt", replace(CONFIG, epochs=6, patience=1), []
    stopped, again = new_model(), new_model()
    fit(stopped, TRAIN, VAL, config, checkpoint=path, task=accuracies_on_val(0.5, 0.6, 0.4))
    result = fit(again, TRAIN, VAL, config, checkpoint=path, on_epoch=later.append)
    assert later == [] and len(result.history) == 3
    assert same(weights_of(stopped), weights_of(again))


def test_plateau_lowers_the_rate_of_the_epochs_that_follow():
    config = replace(CONFIG, epochs=6, schedule="plateau", plateau_patience=1, plateau_factor=0.1, lr=0.01)
    task = replace(TASK, loss=on_val(TASK.loss, [1.0, 1.0, 1.0, 0.5, 0.6, 0.7]))
    result = fit(new_model(), TRAIN, VAL, config, task=task)
    assert result.history.lr.tolist() == pytest.approx([0.01, 0.01, 0.01, 0.001, 0.001, 0.001])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_rate_of_every_step_is_that_of_the_schedule_for_all_parameters(optimizer, monkeypatch):
    rates = watch_steps(
        monkeypatch, lambda model, optimizer, *_: {float(group["lr"]) for group in optimizer.param_groups}
    )
    config = replace(CONFIG, optimizer=optimizer, schedule="cosine", final=0.1)
    fit(new_model(), TRAIN, VAL, config)
    assert rates == [{learning_rate(step, 15, [], config)} for step in range(15)]


def test_balanced_weights_of_the_training_labels_reach_the_loss(monkeypatch):
    kept = (TRAIN[1] >= 2) | (np.arange(160) < 40)  # classes 0 and 1 are rare
    images, labels = TRAIN[0][kept], TRAIN[1][kept]
    weights = balanced_weights(labels)
    assert weights[:2].min() > 2 * weights[2:].max()
    outputs = []
    model = new_model()
    model.register_forward_hook(lambda module, _, logits: outputs.append(logits.detach()))
    seen = watch_steps(monkeypatch, lambda model, optimizer, inputs, targets, loss: (targets, loss))
    config = replace(CONFIG, class_weights="balanced", epochs=1, batch_size=len(labels))
    result = fit(model, (images, labels), VAL, config)
    (targets, loss), on_train, on_val = seen[0], *outputs
    assert torch.isclose(loss, cross_entropy(on_train, targets, 0.1, class_weights=weights))
    expected = float(cross_entropy(on_val, torch.from_numpy(VAL[1]), 0.1, class_weights=weights))
    assert result.history.val_loss[0] == pytest.approx(expected)


def test_alternate_shows_each_image_once_from_each_side_in_two_epochs(monkeypatch):
    """Image i is of brightness i, but for a white left half or a white right half."""
    images = np.repeat(np.arange(160, dtype=np.uint8), 48 * 48).reshape(160, 48, 48)
    images[:, :, :24] = 255
    inputs = watch_steps(monkeypatch, lambda model, optimizer, inputs, *_: inputs)
    fit(new_model(), (images, TRAIN[1]), VAL, replace(CONFIG, epochs=4, augment=replace(NO_AUGMENT, alternate=True)))
    sides = []
    for epoch in range(4):
        pixels = torch.cat(inputs[5 * epoch : 5 * epoch + 5])[:, 0, 24, [5, 42]]  # one in the left half, one right
        which = ((pixels.amin(1) * 0.255 + 0.508) * 255).round().int()
        assert sorted(which.tolist()) == list(range(160))  # every image, once
        sides.append((pixels[:, 0] < pixels[:, 1])[which.argsort()])
    assert torch.equal(sides[1], ~sides[0])
    assert torch.equal(sides[2], sides[0]) and torch.equal(sides[3], sides[1])
    assert 50 < sides[0].sum() < 110  # about half of them, so no epoch is mirrored as a whole


def test_which_images_alternate_first_depends_on_the_seed():
    first, again, other = (sides(1000, seed, 0) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


STRONG = Augment(rotate=20, scale=0.2, brightness=0.3, contrast=0.3, erase=0.5, mixup=0.4, cutmix=1.0, alternate=True)
WEAK = replace(NO_AUGMENT, flip=STRONG.flip, shift=STRONG.shift, alternate=True)


@pytest.mark.parametrize(
    ("weak_epochs", "expected"),
    [(0, [STRONG, STRONG, STRONG]), (1, [STRONG, STRONG, WEAK]), (3, [WEAK] * 3), (9, [WEAK] * 3)],
)
def test_weak_epochs_come_last(weak_epochs, expected):
    config = replace(CONFIG, augment=STRONG, weak_epochs=weak_epochs)
    assert [config.augment_in(epoch) for epoch in range(3)] == expected


def test_fit_trains_the_last_epochs_with_the_weak_augmentation(monkeypatch):
    real, used = TrainingStep.next_batch, []
    monkeypatch.setattr(TrainingStep, "next_batch", lambda step: used.append(step.augment) or real(step))
    fit(new_model(), TRAIN, VAL, replace(CONFIG, augment=STRONG, weak_epochs=1))
    assert used == 10 * [STRONG] + 5 * [WEAK]  # five steps an epoch


def test_mixed_labels_reach_the_loss(monkeypatch):
    targets = watch_steps(monkeypatch, lambda model, optimizer, inputs, targets, loss: targets)
    fit(new_model(), TRAIN, VAL, replace(CONFIG, epochs=1, augment=Augment(mixup=1.0)))
    assert targets[0].shape == (32, 7) and torch.allclose(targets[0].sum(1), torch.ones(32))
    assert (targets[0].amax(1) < 1).sum() > 16


def test_landmarks_refuse_mixing_before_anything_is_learned():
    points = np.full((160, 4, 2), 0.5, np.float32)
    config = replace(CONFIG, augment=Augment(cutmix=1.0))
    with pytest.raises(ValueError, match="landmarks cannot be mixed"):
        fit(new_model(), (TRAIN[0], points), (VAL[0], points[:64]), config, task=landmarks("wing"))


# ---- Several seeds ----


def train_seeds(config: TrainConfig, seeds: tuple[int, ...], checkpoint=None) -> dict[int, list[torch.Tensor]]:
    """The weights that each seed ends with."""
    runs = seed_runs(Small, TRAIN, VAL, config, seeds, checkpoint)
    assert [len(result.history) for result in fit_all(runs)] == [config.epochs] * len(seeds)
    return {run.config.seed: weights_of(run.model) for run in runs}


def test_seeds_give_what_single_runs_give_in_any_order():
    config = replace(CONFIG, epochs=2, augment=Augment(mixup=0.2))
    single = {}
    for seed in (0, 3):
        set_seed(seed)
        model = Small()
        fit(model, TRAIN, VAL, replace(config, seed=seed))
        single[seed] = weights_of(model)
    for seeds in ((0, 3), (3, 0)):
        together = train_seeds(config, seeds)
        assert list(together) == list(seeds)
        assert all(same(together[seed], single[seed]) for seed in seeds)
    assert not same(single[0], single[3])


def test_seeds_keep_checkpoints_of_their_own_and_resume(tmp_path, capsys):
    def file_of(config):
        return tmp_path / f"run-{config.seed}.pt"

    first = train_seeds(CONFIG, (0, 1), file_of)
    again = train_seeds(CONFIG, (1, 0), file_of)
    assert capsys.readouterr().out.count("resumed after epoch 3") == 2
    assert all(same(first[seed], again[seed]) for seed in (0, 1))


def test_a_seed_that_occurs_twice_is_refused_before_training():
    with pytest.raises(TrainingError, match="seed 1 occurs twice"):
        seed_runs(Small, TRAIN, VAL, TrainConfig(), [0, 1, 1])
