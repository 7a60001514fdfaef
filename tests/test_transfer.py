"""Transfer: VGG16, learning rates per layer, freezing, a task without labels, and ImageNet weights for all of it."""

import re
import urllib.request
from collections import OrderedDict
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from helpers import toy_faces
from torch import nn
from torchvision.models import resnet18
from torchvision.models.vgg import cfgs, make_layers

from fer_utils import internet
from fer_utils.augment import NO_AUGMENT, Augment
from fer_utils.cost import count_gmacs, count_params
from fer_utils.device import set_seed
from fer_utils.errors import TrainingError
from fer_utils.models import build_model
from fer_utils.models.pretrained import imagenet_weights
from fer_utils.models.vgg import vgg16_backbone
from fer_utils.models.weights import load_backbone, save_weights
from fer_utils.training import TrainConfig, fit, tasks
from fer_utils.training.loop import set_modes
from fer_utils.training.optim import build_optimizer, lr_factor
from fer_utils.training.step import train_step

CONFIG = TrainConfig(epochs=2, batch_size=16, lr=0.05, precision="fp32")


class Small(nn.Module):
    """A backbone of two parts with norms and dropout, and a head, in milliseconds."""

    def __init__(self, outputs: int = 7) -> None:
        super().__init__()
        parts = {
            "low": nn.Sequential(nn.Conv2d(1, 4, 6, stride=6), nn.BatchNorm2d(4), nn.ReLU()),
            "high": nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)),
        }
        self.backbone = nn.Sequential(OrderedDict(parts))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


def small(outputs: int = 7) -> Small:
    set_seed(3)
    return Small(outputs)


TRAIN, VAL = toy_faces(96, 0), toy_faces(32, 1)
FROZEN = (("backbone", 0.0),)
TOP_FREE = (("backbone", 0.0), ("backbone.high", 0.5))


# ---- Learning rates per layer ----


@pytest.mark.parametrize(
    "name, expected",
    [("head.1.weight", 1), ("backbone.low.0.weight", 0), ("backbone", 0), ("backbone.high.0.bias", 0.5), ("", 1)],
)
def test_the_longest_name_that_fits_decides(name, expected):
    for factors in (TOP_FREE, TOP_FREE[::-1]):
        assert lr_factor(name, replace(CONFIG, lr_factors=factors)) == expected


def test_a_name_fits_whole_parts_only():
    assert lr_factor("backbone.layer10.weight", replace(CONFIG, lr_factors=(("backbone.layer1", 0.1),))) == 1


def test_a_name_that_no_module_has_is_refused():
    with pytest.raises(ValueError, match=r"lr_factors names 'backbon'; there is no such module"):
        build_optimizer(small(), replace(CONFIG, lr_factors=(("backbon", 0.1),)))


@pytest.mark.parametrize("factor", [-0.1, "0.1", float("nan"), True])
def test_a_factor_that_is_no_factor_is_refused(factor):
    with pytest.raises(ValueError, match=r"factor of .head. in TrainConfig\.lr_factors"):
        TrainConfig(lr_factors=(("head", factor),))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_factor_scales_the_step_of_its_module_alone(optimizer):
    """One batch, no momentum, no decay: SGD's step is the gradient times the rate, AdamW's first one about the rate."""
    config = replace(
        CONFIG, optimizer=optimizer, epochs=1, batch_size=96, momentum=0.0, weight_decay=0.0, augment=NO_AUGMENT
    )
    steps = {}
    for factors in ((), (("backbone.low", 0.25),)):
        model = small()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        fit(model, TRAIN, VAL, replace(config, lr_factors=factors))
        steps[factors] = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    plain, scaled = steps.values()
    for name, step in plain.items():
        expected = 0.25 * step if name.startswith("backbone.low.") else step
        assert torch.allclose(scaled[name], expected, rtol=1e-3, atol=1e-6), name


def test_history_tells_the_rate_without_factors():
    plain, scaled = (
        fit(small(), TRAIN, VAL, replace(CONFIG, lr_factors=factors)).history.lr for factors in ((), TOP_FREE)
    )
    assert np.allclose(plain, scaled, rtol=1e-6)


# ---- Freezing ----


def test_what_is_frozen_stays_with_its_statistics_and_the_rest_learns():
    for factors, moving in ((FROZEN, {"head"}), (TOP_FREE, {"head", "backbone.high"})):
        model = small()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        fit(model, TRAIN, VAL, replace(CONFIG, lr_factors=factors))
        moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        expected = {name for name in before if any(name.startswith(f"{module}.") for module in moving)}
        assert moved == expected


def test_freezing_switches_off_norms_and_dropout_of_the_frozen_part_only():
    model = small()
    set_modes(model, replace(CONFIG, lr_factors=TOP_FREE))
    assert not any(module.training for module in model.backbone.low.modules())
    assert all(module.training for module in (*model.backbone.high.modules(), *model.head.modules()))
    set_modes(model, CONFIG)
    assert all(module.training for module in model.modules())


def test_frozen_parameters_need_no_gradient_while_learning_and_are_freed_afterwards(monkeypatch):
    model, real_step, seen = small(), train_step, []

    def watch(network, *others):
        seen.append({name for name, p in network.named_parameters() if not p.requires_grad})
        return real_step(network, *others)

    monkeypatch.setattr("fer_utils.training.step.train_step", watch)
    fit(model, TRAIN, VAL, replace(CONFIG, lr_factors=FROZEN))
    assert seen and all(
        names == {n for n, _ in model.named_parameters() if n.startswith("backbone.")} for names in seen
    )
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_the_caller_froze_is_not_freed():
    model = small()
    model.backbone.low.requires_grad_(False)
    fit(model, TRAIN, VAL, replace(CONFIG, lr_factors=(("backbone.high", 0.0),)))
    assert not any(parameter.requires_grad for parameter in model.backbone.low.parameters())
    assert all(parameter.requires_grad for parameter in model.backbone.high.parameters())


def test_a_frozen_network_learns_with_its_head():
    result = fit(small(), TRAIN, VAL, replace(CONFIG, epochs=8, lr_factors=FROZEN, augment=NO_AUGMENT))
    assert result.history.val_accuracy.max() > 0.8


@pytest.mark.parametrize("factors", [FROZEN, TOP_FREE], ids=["frozen", "top free"])
def test_resumed_training_equals_uninterrupted_training(tmp_path, factors):
    config = replace(CONFIG, epochs=3, lr_factors=factors)
    whole, resumed, cut = small(), small(), tmp_path / "cut.pt"
    expected = fit(whole, TRAIN, VAL, config, checkpoint=tmp_path / "whole.pt")
    fit(small(), TRAIN, VAL, config, checkpoint=cut, on_epoch=lambda row: row["epoch"] == 1)
    result = fit(resumed, TRAIN, VAL, config, checkpoint=cut)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    assert result.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))
    with pytest.raises(TrainingError, match="lr_factors"):
        fit(small(), TRAIN, VAL, replace(config, lr_factors=()), checkpoint=cut)


# ---- Rotations ----


def test_a_turn_is_a_quarter_anticlockwise():
    image = torch.tensor([[1, 2], [3, 4]])
    turned = tasks.turn(image.expand(4, 2, 2), torch.tensor([3, 2, 1, 0]))
    assert turned.tolist() == [[[3, 1], [4, 2]], [[4, 3], [2, 1]], [[2, 4], [1, 3]], [[1, 2], [3, 4]]]
    assert torch.equal(tasks.turn(image.expand(4, 1, 2, 2), torch.tensor([3, 2, 1, 0])), turned[:, None])


def test_rotation_targets_are_the_turns_and_labels_are_not_looked_at():
    images = torch.randn(64, 1, 6, 6)
    results = []
    for targets in (torch.zeros(64, dtype=torch.long), torch.full((64,), 5)):
        turned, turns = tasks.rotations().augment(images, targets, NO_AUGMENT, torch.Generator().manual_seed(1))
        results.append((turned, turns))
        assert set(turns.tolist()) == {0, 1, 2, 3}
        assert torch.equal(turned, tasks.turn(images, turns))
    assert all(map(torch.equal, *results))


def test_rotations_cannot_be_mixed():
    with pytest.raises(ValueError, match="turned images cannot be mixed"):
        tasks.rotations().augment(torch.zeros(2, 1, 6, 6), None, Augment(mixup=0.4), torch.Generator())


def test_a_network_learns_rotations_without_labels():
    """Bars that grow brighter downwards: which way up they are can be seen."""
    shade = np.linspace(0, 255, 48).astype(np.uint8)[:, None].repeat(48, 1)
    images = np.stack([shade] * 96)
    turns = torch.arange(32) % 4
    val = tasks.turn(torch.from_numpy(images[:32]), turns).numpy(), turns.numpy()
    config = replace(CONFIG, epochs=6, augment=NO_AUGMENT)
    result = fit(small(4), (images, np.zeros(96, dtype=int)), val, config, task=tasks.rotations())
    assert result.history.val_accuracy.max() == 1
    assert result.task.name == "rotations"


# ---- VGG16 ----


def test_size_and_cost_of_vgg16_by_hand():
    parameters, macs, before = 0, 0, 1
    for side, width, depth in [(48, 64, 2), (24, 128, 2), (12, 256, 3), (6, 512, 3), (3, 512, 3)]:
        for _ in range(depth):
            parameters += (9 * before + 1) * width + 2 * width  # kernels and biases, then a norm
            macs += 9 * before * width * side**2
            before = width
    model = build_model("vgg16")
    assert count_params(model) == parameters + (512 + 1) * 256 + (256 + 1) * 7
    assert count_gmacs(model) == pytest.approx(macs / 1e9, rel=0.01)


def test_vgg16_ends_in_one_position_and_five_blocks():
    backbone = vgg16_backbone().eval()
    assert [name for name, _ in backbone.named_children()] == [f"block{i}" for i in range(1, 6)]
    assert backbone(torch.zeros(2, 1, 48, 48)).shape == (2, 512, 1, 1)
    points = build_model("landmark_net", backbone="vgg16").eval()(torch.randn(2, 1, 48, 48))
    assert points.shape == (2, 4, 2) and (points - 0.5).abs().max() < 0.2


def test_a_vgg16_classifier_starts_from_a_landmark_vgg16_and_not_from_a_resnet18(tmp_path):
    landmarks = build_model("landmark_net", backbone="vgg16")
    save_weights(landmarks, tmp_path / "vgg.pt")
    model = load_backbone(build_model("vgg16"), tmp_path / "vgg.pt")
    assert all(map(torch.equal, model.backbone.state_dict().values(), landmarks.backbone.state_dict().values()))
    save_weights(build_model("landmark_net"), tmp_path / "resnet.pt")
    with pytest.raises(TrainingError, match="belongs to another run"):
        load_backbone(build_model("vgg16"), tmp_path / "resnet.pt")


# ---- ImageNet weights in torch's cache ----


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache folder for weights, empty, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


GRAY = torch.randn(2, 1, 48, 48, generator=torch.Generator().manual_seed(0))


def test_a_gray_image_gives_resnet18_what_torchvisions_gives_for_it_in_color(cache):
    set_seed(0)
    original = resnet18().eval()
    torch.save(original.state_dict(), cache / "resnet18-f37072fd.pth")
    model = build_model("resnet18", imagenet=imagenet_weights("resnet18")).eval()
    expected = nn.Sequential(*list(original.children())[:-2])(GRAY.expand(-1, 3, -1, -1))
    assert torch.allclose(model.backbone(GRAY), expected, atol=1e-4)


@pytest.mark.parametrize("counted", [True, False], ids=["", "saved before norms counted their batches"])
def test_a_gray_image_gives_vgg16_what_torchvisions_gives_for_it_in_color(cache, counted):
    set_seed(0)
    original = make_layers(cfgs["D"], batch_norm=True).eval()
    weights = {f"features.{name}": tensor for name, tensor in original.state_dict().items()}
    weights |= {"classifier.6.bias": torch.zeros(1000)}  # torchvision's dense layers have no use here
    kept = {name: tensor for name, tensor in weights.items() if counted or "num_batches" not in name}
    torch.save(kept, cache / "vgg16_bn-6c64b313.pth")
    model = build_model("vgg16", imagenet=imagenet_weights("vgg16_bn")).eval()
    assert torch.allclose(model.backbone(GRAY), original(GRAY.expand(-1, 3, -1, -1)), atol=1e-4)


@pytest.mark.parametrize(
    "content, said",
    [
        (None, r"out of reach \(URLError\): the network starts from scratch"),
        (b"", "vgg16_bn-6c64b313.pth is damaged, delete it"),
        (b"<html>please log in</html>", "vgg16_bn-6c64b313.pth is damaged, delete it"),
        (b"PK\x03\x04 cut off", "vgg16_bn-6c64b313.pth is damaged, delete it"),
    ],
    ids=["no cache", "empty", "a web page", "truncated"],
)
def test_without_usable_weights_training_starts_from_scratch_and_says_so(cache, capsys, content, said):
    if content is not None:
        (cache / "vgg16_bn-6c64b313.pth").write_bytes(content)
    internet.server_problem.cache_clear()
    assert imagenet_weights("vgg16_bn") is None
    assert re.search(said, capsys.readouterr().out)
