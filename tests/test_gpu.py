"""What only a GPU can show: that a captured step is the step, that neighbors do not matter, that memory comes back."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers import toy_faces
from torch import nn

from fer_utils.augment import Augment
from fer_utils.device import select_device, set_seed
from fer_utils.errors import TrainingError
from fer_utils.models import build_model
from fer_utils.models.local_global import LocalGlobalNet
from fer_utils.models.resnet import STEMS
from fer_utils.training import Run, TrainConfig, fit, fit_all, tasks
from fer_utils.training.loop import set_modes
from fer_utils.training.optim import build_optimizer
from fer_utils.training.step import TrainingStep, update_ema
from fer_utils.training.streams import open_stream

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

TRAIN, VAL = toy_faces(640, 0), toy_faces(100, 1)
STRONG = Augment(alternate=True, erase=0.5, mixup=0.4, cutmix=1.0)
CONFIG = TrainConfig(epochs=3, batch_size=32, lr=0.01, precision="fp32", augment=STRONG, ema=0.9, clip=1.0)


@pytest.fixture(scope="module")
def device() -> torch.device:
    return select_device("cuda")


@pytest.fixture(autouse=True)
def short_runs_are_captured_as_well(monkeypatch):
    monkeypatch.setattr("fer_utils.training.loop.LEAST_STEPS", 0)


NETWORKS = {
    "baseline_cnn": lambda: build_model("baseline_cnn"),
    **{f"resnet18 {stem}": lambda stem=stem: build_model("resnet18", stem=stem) for stem in STEMS},
    "attention_resnet18": lambda: build_model("resnet18", attention="gates"),
    "efficientnet_b0": lambda: build_model("efficientnet_b0"),
    "vgg16": lambda: build_model("vgg16"),
    "local_global": LocalGlobalNet,
    "local_global landmarks": lambda: build_model(
        "local_global", regions="landmarks", landmarks=build_model("landmark_net")
    ),
}


def make_steps(build, device, config, is_captured: bool, task=None, targets=None) -> TrainingStep:
    """Twenty steps of one epoch from the same start, eager or captured."""
    stream = open_stream(device)
    with stream.active():
        set_seed(config.seed)
        model = build().to(device, memory_format=torch.channels_last)
        ema_model = copy.deepcopy(model) if config.ema else None
        images, labels = (torch.as_tensor(array).to(device) for array in TRAIN)
        set_seed(config.seed)
        set_modes(model, config)
        generator = torch.Generator(device).manual_seed(0)
        step = TrainingStep(
            model,
            ema_model,
            build_optimizer(model, config),
            task or tasks.classification(config.label_smoothing),
            config,
            config.precision,
            images,
            labels if targets is None else targets.to(device),
            generator,
        )
        step.begin_epoch(0)
        next_step = stream.capture(step) if is_captured else step
        assert (next_step is not step) == is_captured, "it could not be captured"
        for _ in range(step.steps):
            next_step()
    stream.close()
    return step


def assert_same_course(captured: TrainingStep, eager: TrainingStep) -> None:
    """Kernels may add in another order, and training multiplies that: so the first steps agree best."""
    assert captured.steps == 20
    torch.testing.assert_close(captured.losses[:3], eager.losses[:3], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(captured.losses, eager.losses, rtol=0.05, atol=0.05)
    assert torch.equal(captured.generator.get_state(), eager.generator.get_state())


@pytest.mark.parametrize("name", NETWORKS)
def test_captured_equals_eager(name, device):
    config = replace(CONFIG, lr=0.002)
    assert_same_course(*(make_steps(NETWORKS[name], device, config, is_captured) for is_captured in (True, False)))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "lr": 1e-3},
        {"schedule": "cosine"},
        {"schedule": "plateau"},
        {"precision": "bf16"},
        {"lr_factors": (("features", 0.0),)},
        {"ema": 0.0, "clip": 0.0, "momentum": 0.0},
        {"sampling": "balanced"},
    ],
    ids=str,
)
def test_every_option_is_captured(options, device):
    config = replace(CONFIG, **options)
    steps = [make_steps(NETWORKS["baseline_cnn"], device, config, is_captured) for is_captured in (True, False)]
    assert_same_course(*steps)


def test_every_task_is_captured(device):
    plain = replace(CONFIG, augment=Augment(), lr=1e-3)
    points, shares = torch.rand(640, 4, 2), torch.rand(640, 7).softmax(1)
    both = torch.cat([torch.arange(640).view(-1, 1) % 7, points.flatten(1)], 1)
    both[::3, 1:] = torch.nan  # a third of the faces has no landmarks
    for build, task, targets in (
        (lambda: build_model("landmark_net"), tasks.landmarks("wing"), points),
        (lambda: build_model("multi_task_net"), tasks.emotions_and_landmarks(0.1), both),
        (lambda: build_model("resnet18", num_classes=4), tasks.rotations(), None),
        (NETWORKS["baseline_cnn"], None, shares),
    ):
        assert_same_course(*(make_steps(build, device, plain, captured, task, targets) for captured in (True, False)))


def test_the_average_moves_as_far_as_asked(device):
    model, ema_model = (nn.BatchNorm1d(30, device=device) for _ in range(2))
    nn.init.normal_(model.weight)
    update_ema(ema_model, model, torch.tensor(0.25, device=device))
    torch.testing.assert_close(ema_model.weight, 1 + 0.25 * (model.weight - 1))


class Small(nn.Module):
    """Without convolutions by cuDNN that may choose another algorithm beside a neighbor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(2304, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def small_runs() -> list[Run]:
    runs = []
    for seed in range(4):
        set_seed(seed)
        runs.append(Run(Small(), TRAIN, VAL, replace(CONFIG, seed=seed), name=f"seed {seed}"))
    return runs


def test_four_at_once_equal_four_alone(device):
    together, alone = small_runs(), small_runs()
    results = fit_all(together, device, at_once=4)
    for run, other, result in zip(together, alone, results, strict=True):
        history = fit(other.model, other.train, other.val, other.config, device).history
        for column in ("train_loss", "val_loss"):
            assert result.history[column].tolist() == pytest.approx(history[column].tolist(), rel=1e-4)
        for name, tensor in run.model.state_dict().items():
            torch.testing.assert_close(tensor, other.model.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_resumed_training_equals_uninterrupted_training(tmp_path, device):
    whole, cut, resumed = (small_runs()[0] for _ in range(3))
    expected = fit(whole.model, TRAIN, VAL, whole.config, device).history
    file = tmp_path / "run.pt"
    fit(cut.model, TRAIN, VAL, cut.config, device, file, on_epoch=lambda row: row["epoch"] == 1)
    found = fit(resumed.model, TRAIN, VAL, resumed.config, device, file).history
    assert len(found) == 3 and found.val_loss.tolist() == pytest.approx(expected.val_loss.tolist(), rel=1e-4)


def test_a_checkpoint_of_the_cpu_is_refused(tmp_path, device):
    run, file = small_runs()[0], tmp_path / "run.pt"
    fit(run.model, TRAIN, VAL, run.config, "cpu", file, on_epoch=lambda row: True)
    with pytest.raises(TrainingError, match="device: cpu there, cuda here"):
        fit(small_runs()[0].model, TRAIN, VAL, run.config, device, file)


def test_checkpoints_are_written_now_and_then_and_at_the_end(tmp_path, device, monkeypatch):
    written = []
    monkeypatch.setattr(
        "fer_utils.training.loop.write_checkpoint", lambda state, path: written.append(len(state["history"]))
    )
    run = small_runs()[0]
    fit(run.model, TRAIN, VAL, run.config, device, tmp_path / "run.pt")
    assert written == [3]
    monkeypatch.setattr("fer_utils.training.loop.SAVE_SECONDS", 0)
    fit(run.model, TRAIN, VAL, run.config, device, tmp_path / "run.pt")
    assert written == [3, 1, 2, 3]


def test_memory_comes_back(device):
    def used() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    def train_and_drop() -> None:
        fit_all(small_runs(), device)

    train_and_drop()  # what libraries keep, they keep from the first time on
    before = used()
    for _ in range(3):
        train_and_drop()
    assert used() <= before + 2**21


def test_too_little_memory_is_a_sentence(device):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        with pytest.raises(TrainingError, match=r"the GPU has too little memory .*; try .*batch_size 320"):
            fit(build_model("resnet18", stem="small"), TRAIN, VAL, replace(CONFIG, batch_size=640), device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_what_cannot_be_captured_is_said_and_trained_eagerly(device, capsys):
    honest = tasks.classification()

    def reads_back(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return honest.metric_fn(outputs, targets) + 0 * outputs.sum().item()

    run = small_runs()[0]
    history = fit(run.model, TRAIN, VAL, run.config, device, task=replace(honest, metric_fn=reads_back)).history
    assert "cannot be captured as a CUDA graph" in capsys.readouterr().out
    expected = fit(small_runs()[0].model, TRAIN, VAL, run.config, device, task=honest).history
    assert history.val_loss.tolist() == pytest.approx(expected.val_loss.tolist(), rel=1e-3)
