"""EfficientNet-B0 for one channel: its cost, its grids, its stems, and an ablation that is killed half-way."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import efficientnet_b0

from fer_utils import metrics
from fer_utils.augment import NO_AUGMENT
from fer_utils.cost import count_gmacs
from fer_utils.errors import TrainingError
from fer_utils.models import build_model, efficientnet
from fer_utils.models.weights import load_backbone, load_weights, save_weights
from fer_utils.training import TrainConfig, fit_all, loop, seed_runs
from fer_utils.training.checkpoints import checkpoint_file
from fer_utils.training.optim import build_optimizer, learning_rate


class Pair(nn.Module):
    """Two networks that both look at the image, as an ensemble does."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(build_model("efficientnet_b0") for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return sum(member(images) for member in self.members) / 2


# ---- The network ----


def test_cost_of_one_and_of_two():
    assert round(count_gmacs(build_model("efficientnet_b0")), 9) == 0.023210688
    assert round(count_gmacs(Pair()), 9) == 0.046421376


@pytest.mark.parametrize(
    "stem, stride, widths",
    [("imagenet", 2, [24, 24, 12, 6, 3, 3, 2, 2, 2]), ("small", 1, [48, 48, 24, 12, 6, 6, 3, 3, 3])],
)
def test_grid_after_every_stage(stem, stride, widths):
    backbone = build_model("efficientnet_b0", stem=stem).eval().backbone
    conv, x, found = backbone[0][0], torch.zeros(1, 1, 48, 48), []
    assert (conv.in_channels, conv.kernel_size, conv.stride) == (1, (3, 3), (stride, stride))
    for stage in backbone:
        x = stage(x)
        found.append(x.shape[2])
    assert found == widths and x.shape[1] == 1280


def test_unknown_stem_lists_the_known_ones():
    with pytest.raises(ValueError, match="imagenet, small"):
        build_model("efficientnet_b0", stem="middle")


@pytest.fixture(scope="module")
def rgb_network():
    """A network for three channels, whose weights stand in for ImageNet's."""
    torch.manual_seed(1)
    return efficientnet_b0().eval()


@pytest.mark.parametrize("stem", efficientnet.EfficientNetB0.stems)
def test_start_from_imagenet_sums_the_stem_over_the_colors_and_keeps_all_else(rgb_network, stem):
    model = build_model("efficientnet_b0", stem=stem, imagenet=rgb_network.state_dict()).eval()
    gray = torch.randn(2, 1, 48, 48)
    first, rgb_first = model.backbone[0][0], rgb_network.features[0][0]
    in_color = nn.functional.conv2d(gray.repeat(1, 3, 1, 1), rgb_first.weight, stride=first.stride, padding=1)
    assert torch.allclose(first(gray), in_color, atol=1e-5)
    theirs = rgb_network.features.state_dict()
    same = [
        torch.equal(tensor, theirs[name])
        for name, tensor in model.backbone.state_dict().items()
        if name != "0.0.weight"
    ]
    assert len(same) == len(theirs) - 1 and all(same)


@pytest.mark.parametrize("load", [load_weights, load_backbone])
def test_weights_of_one_stem_are_refused_by_the_other(tmp_path, load):
    save_weights(build_model("efficientnet_b0", stem="small"), tmp_path / "small.pt")
    load(build_model("efficientnet_b0", stem="small"), tmp_path / "small.pt")
    with pytest.raises(TrainingError, match="stem: small there, imagenet here"):
        load(build_model("efficientnet_b0"), tmp_path / "small.pt")


# ---- The recipe ----

RECIPE = TrainConfig(
    epochs=300, batch_size=64, optimizer="adamw", lr=1e-2, warmup=0.1, warmup_from=1 / 10, final=1 / 10 / 1000,
    weight_decay=0.1, clip=2.0, label_smoothing=0.1, patience=20, augment=NO_AUGMENT, precision="fp32",
)  # fmt: skip


def test_learning_rate_runs_from_a_tenth_over_its_peak_to_a_ten_thousandth():
    rates = [learning_rate(step, 10_000, [], RECIPE) for step in range(10_001)]
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-6)
    assert max(rates) == pytest.approx(1e-2) and int(np.argmax(rates)) == 1000


def test_weight_decay_spares_norms_and_biases():
    model = build_model("efficientnet_b0")
    spared = {
        id(p)
        for group in build_optimizer(model, RECIPE).param_groups
        if not group["weight_decay"]
        for p in group["params"]
    }
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            assert (id(parameter) in spared) == (isinstance(module, nn.BatchNorm2d) or name == "bias")


# ---- Several versions ----


class Small(nn.Module):
    """A classifier that trains in milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 6, stride=6), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 7))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Killed(BaseException):
    """What a kill does to the process, without the process."""


VERSIONS = {f"shift {i}": replace(NO_AUGMENT, shift=i / 48) for i in range(5)}


def train_versions(folder):
    """Five versions, three epochs each, as notebook 06 trains them; returns their weights."""
    rng = np.random.default_rng(0)
    train, val = ((rng.integers(0, 256, (n, 48, 48), dtype=np.uint8), np.arange(n) % 7) for n in (64, 28))
    runs = []
    for name, how in VERSIONS.items():
        config = replace(RECIPE, epochs=3, batch_size=16, augment=how)
        file_of = partial(checkpoint_file, folder, name, fingerprint="data")
        runs += seed_runs(Small, train, val, config, [0], lambda own, file_of=file_of: file_of(config=own), name=name)
    assert [len(result.history) for result in fit_all(runs)] == [3] * 5
    return {run.name: run.model.state_dict() for run in runs}


def test_killed_in_version_4_of_5_it_resumes_there_and_ends_the_same(tmp_path, monkeypatch, capsys):
    expected = train_versions(tmp_path / "whole")
    assert capsys.readouterr().out.count("epoch ") == 15
    real_save, saved = loop.Training.save, []

    def save_and_die(run, path):
        real_save(run, path)
        saved.append(path)
        if len(saved) == 11:  # three versions of three epochs, and two of the fourth
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Training, "save", save_and_die)
        train_versions(tmp_path / "killed")
    capsys.readouterr()
    resumed = train_versions(tmp_path / "killed")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" from ")[0] for line in lines if ": resumed" in line] == [
        *[f"shift {i}, seed 0: resumed after epoch 3" for i in range(3)], "shift 3, seed 0: resumed after epoch 2"
    ]  # fmt: skip
    assert sum(": epoch " in line for line in lines) == 1 + 3  # the rest of the fourth, and the fifth
    for name, tensors in expected.items():
        assert all(torch.equal(tensor, resumed[name][key]) for key, tensor in tensors.items())


# ---- Several questions ----


@pytest.mark.parametrize(
    "p_values, corrected",
    [
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; 2 x 0.03; 1 x 0.04, but not below the one before
        ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),
        ([0.9, 0.5], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p_values, corrected):
    assert metrics.holm(p_values) == pytest.approx(corrected)


def test_holm_of_no_question_is_empty():
    assert metrics.holm([]).shape == (0,)
