"""The training step never waits for the device, and the steps that warm it up leave no trace.

Fake tensors have a device and a shape but no values, so that whatever reads a value raises an error: on a GPU it would
stop the queue, and could not be captured. This needs no GPU.
"""

import copy
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import toy_faces
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fer_utils.augment import NO_AUGMENT, Augment, beta_quantiles
from fer_utils.models import ARCHITECTURES, build_model
from fer_utils.training import TrainConfig, distill, tasks
from fer_utils.training.loop import freeze, set_modes
from fer_utils.training.optim import build_optimizer
from fer_utils.training.step import TrainingStep, lerp_together

CONFIG = TrainConfig(epochs=2, batch_size=4, lr=0.02, precision="bf16")
EVERYTHING = {
    "optimizer": "adamw",
    "decay_all": True,
    "schedule": "plateau",
    "clip": 1.0,
    "ema": 0.9,
    "augment": Augment(alternate=True, erase=0.5, mixup=0.4, cutmix=1.0),
}
OPTIONS = [
    {},
    {"optimizer": "adamw"},
    {"schedule": "cosine", "final": 0.1},
    {"schedule": "plateau"},
    {"clip": 1.0},
    {"ema": 0.9},
    {"augment": Augment(alternate=True)},
    {"augment": Augment(erase=0.5)},
    {"augment": Augment(mixup=0.4)},
    {"augment": Augment(cutmix=1.0)},
    {"augment": NO_AUGMENT},
    {"precision": "fp32"},
    {"lr_factors": (("features", 0.0),)},
    {"lr_factors": (("features", 0.1), ("features.0", 0.0))},
    {"sampling": "balanced"},
    EVERYTHING,
]


@pytest.fixture(params=["cpu", "cuda"])
def fake_device(request, monkeypatch):
    """Fake tensors on this device. What has no fake form on a GPU does nothing: backward and the fused updates."""
    beta_quantiles.cache_clear()  # neither may a real table get in, nor a fake one out
    with FakeTensorMode(), warnings.catch_warnings():
        if request.param == "cuda":
            for name in ("rand", "randint", "randperm", "multinomial"):
                monkeypatch.setattr(torch, name, without_generator(getattr(torch, name)))
            monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
            for name in ("_fused_sgd_", "_fused_adamw_"):
                monkeypatch.setattr(torch, name, lambda *tensors, **options: None)
            warnings.filterwarnings("ignore", message="CUDA is not available", category=UserWarning)
        yield torch.device(request.param)
    beta_quantiles.cache_clear()


def without_generator(draw):
    return lambda *args, generator=None, **options: draw(*args, **options)


def fake_step(build, device, config=CONFIG, task=None, shape=(48, 48), targets=None) -> TrainingStep:
    """A step on ten fake images."""
    with torch.device(device):
        model, ema_model = build(), build() if config.ema else None
        images = torch.zeros(10, *shape, dtype=torch.uint8)
        targets = torch.zeros(10, dtype=torch.long) if targets is None else targets()
    freeze(model, config)
    set_modes(model, config)
    optimizer = build_optimizer(model, config)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)  # on a GPU they stay: nothing computes them
    if device.type == "cuda":
        optimizer.zero_grad = lambda set_to_none: None
    generator = torch.Generator() if device.type == "cpu" else SimpleNamespace(device=device)
    task = task or tasks.classification(config.label_smoothing)
    return TrainingStep(model, ema_model, optimizer, task, config, config.precision, images, targets, generator)


def make_steps(step: TrainingStep) -> None:
    """An epoch, as training makes it."""
    step.begin_epoch(1, [1.0])
    for _ in range(step.steps):
        step()
    assert step.steps == 2 and step.losses.shape == (2,) and step.metric_sum.shape == ()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_option_reads_a_value(options, fake_device):
    make_steps(fake_step(lambda: build_model("baseline_cnn"), fake_device, replace(CONFIG, **options)))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "landmark_net"])
def test_no_network_reads_a_value(name, fake_device):
    make_steps(fake_step(lambda: build_model(name), fake_device))


@pytest.mark.parametrize(
    "options",
    [{}, {"view": "local", "regions": "whole"}, {"attention": True}, {"regions": "landmarks"}, {"channels": 3}],
    ids=str,
)
def test_the_local_global_network_reads_no_value(options, fake_device):
    def build():
        follow = {"landmarks": build_model("landmark_net")} if options.get("regions") == "landmarks" else {}
        return build_model("local_global", **options, **follow)

    make_steps(fake_step(build, fake_device, shape=(3, 48, 48) if "channels" in options else (48, 48)))


@pytest.mark.parametrize("loss", ["class weights", "focal"])
def test_no_classification_loss_reads_a_value(loss, fake_device):
    weights = torch.ones(7, device=fake_device)
    task = {"class weights": tasks.classification(class_weights=weights), "focal": tasks.classification(0.1, 2.0)}[loss]
    make_steps(fake_step(lambda: build_model("baseline_cnn"), fake_device, task=task))


def test_label_distributions_read_no_value(fake_device):
    make_steps(fake_step(lambda: build_model("baseline_cnn"), fake_device, targets=lambda: torch.full((10, 7), 1 / 7)))


def test_rotations_read_no_value(fake_device):
    make_steps(fake_step(lambda: build_model("resnet18", num_classes=4), fake_device, task=tasks.rotations()))


@pytest.mark.parametrize("loss", tasks.LANDMARK_LOSSES)
def test_landmarks_read_no_value(loss, fake_device):
    points = lambda: torch.full((10, 4, 2), 0.5)  # noqa: E731
    make_steps(fake_step(lambda: build_model("landmark_net"), fake_device, task=tasks.landmarks(loss), targets=points))


@pytest.mark.parametrize("out_of_fold", [False, True])
def test_distillation_reads_no_value(out_of_fold, fake_device, monkeypatch):
    monkeypatch.setattr(distill, "checksum", id)  # it reads the weights, once, before training
    with torch.device(fake_device):
        task = distill.distillation([build_model("small_resnet") for _ in range(2)], "bf16", out_of_fold)
    folds = (lambda: torch.zeros(10, 2, dtype=torch.long)) if out_of_fold else None
    make_steps(fake_step(lambda: build_model("small_resnet"), fake_device, task=task, targets=folds))


def test_emotions_and_landmarks_read_no_value(fake_device):
    task, targets = tasks.emotions_and_landmarks(0.1, 0.1), lambda: torch.full((10, 9), 0.5)
    make_steps(fake_step(lambda: build_model("multi_task_net"), fake_device, task=task, targets=targets))


def test_whatever_reads_a_value_is_caught(fake_device):
    honest = tasks.classification()
    curious = replace(
        honest, metric_fn=lambda outputs, targets: honest.metric_fn(outputs, targets) * outputs.sum().item()
    )
    with pytest.raises(DataDependentOutputException):
        make_steps(fake_step(lambda: build_model("baseline_cnn"), fake_device, task=curious))


# ---- With values, on the CPU ----


def real_step(options: dict, targets: torch.Tensor | None = None) -> TrainingStep:
    images, labels = (torch.as_tensor(array) for array in toy_faces(40, 0))
    if targets is not None:
        images, labels = images[torch.arange(len(targets)) % len(images)], targets
    config = replace(CONFIG, **({"batch_size": 8, "precision": "fp32"} | options))
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 6, stride=6), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 7))
    ema_model = copy.deepcopy(model) if config.ema else None
    optimizer, task = build_optimizer(model, config), tasks.classification()
    generator = torch.Generator().manual_seed(0)
    return TrainingStep(model, ema_model, optimizer, task, config, "fp32", images, labels, generator)


def everything_in(step: TrainingStep) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in step.state_tensors().values()]


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw"}, {"momentum": 0.0}, {"ema": 0.9}, EVERYTHING], ids=str)
@pytest.mark.parametrize("earlier_epochs", [0, 1])
def test_warming_up_leaves_no_trace(options, earlier_epochs):
    """A new optimizer has no momentum yet: then what the warm-up has created must count for nothing."""
    plain, warmed = real_step(options), real_step(options)
    for epoch in range(earlier_epochs + 1):
        for step in (plain, warmed):
            step.begin_epoch(epoch, [1.0] * epoch)
            if step is warmed and epoch == earlier_epochs:
                step.warm_up()
            for _ in range(step.steps):
                step()
    assert all(map(torch.equal, everything_in(plain), everything_in(warmed)))
    assert torch.equal(plain.generator.get_state(), warmed.generator.get_state())


def test_an_epoch_of_one_step_can_be_warmed_up():
    step = real_step({"batch_size": 40})
    step.begin_epoch(0)
    step.warm_up()
    step()
    assert step.steps == 1 and int(step.position) == 1 and torch.isfinite(step.losses).all()


def test_the_average_of_all_tensors_together_is_lerp():
    torch.manual_seed(0)
    means, current = ([torch.randn(5, 3), torch.randn(40)] for _ in range(2))
    expected = [mean.lerp(now, 0.37) for mean, now in zip(means, current, strict=True)]
    lerp_together(means, current, torch.tensor(0.37))
    for mean, wanted in zip(means, expected, strict=True):
        torch.testing.assert_close(mean, wanted)


# Class 0 has one image in a thousand, class 1 none, class 6 more than half.
UNEQUAL = torch.tensor([0] * 4 + [2] * 100 + [3] * 400 + [4] * 500 + [5] * 700 + [6] * 2296)


def drawn_labels(seed: int = 0) -> torch.Tensor:
    step = real_step({"sampling": "balanced"}, UNEQUAL)
    step.generator.manual_seed(seed)
    step.begin_epoch(0)
    return UNEQUAL[step.batches.flatten()]


def test_balanced_sampling_draws_each_class_equally_often():
    counts = torch.bincount(drawn_labels(), minlength=7)
    assert counts.sum() == 4000 and counts[1] == 0
    expected, sd = 4000 / 6, (4000 / 6 * 5 / 6) ** 0.5  # six classes have images; binomial
    assert (counts[counts > 0] - expected).abs().max() < 4 * sd


def test_balanced_sampling_draws_every_image_of_a_class_equally_often():
    step = real_step({"sampling": "balanced"}, UNEQUAL)
    times = torch.zeros(len(UNEQUAL), dtype=torch.long)
    for epoch in range(3):
        step.begin_epoch(epoch)
        times += torch.bincount(step.batches.flatten(), minlength=len(UNEQUAL))
    rare = times[:4].float()  # four images share 2,000 draws
    assert (rare - 500).abs().max() < 5 * 500**0.5 and times[UNEQUAL == 2].min() > 5


def test_balanced_sampling_depends_on_the_generator_only():
    assert torch.equal(drawn_labels(1), drawn_labels(1)) and not torch.equal(drawn_labels(1), drawn_labels(2))


@pytest.mark.parametrize("targets", [torch.full((40, 7), 1 / 7), torch.full((40, 4, 2), 0.5)], ids=["shares", "points"])
def test_balanced_sampling_needs_labels(targets):
    with pytest.raises(ValueError, match='"balanced" needs labels'):
        real_step({"sampling": "balanced"}, targets).begin_epoch(0)
