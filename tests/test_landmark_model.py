"""The landmark network and what trains it: losses worked out by hand, stems, weights to start from, resuming."""

import urllib.request
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from fer_utils import internet
from fer_utils.augment import MIRROR_ORDER, Augment
from fer_utils.cost import count_gmacs, count_params
from fer_utils.device import set_seed
from fer_utils.errors import TrainingError
from fer_utils.models import build_model
from fer_utils.models.landmark import LandmarkNet
from fer_utils.models.pretrained import imagenet_weights
from fer_utils.models.resnet import STEMS, resnet18_backbone
from fer_utils.models.weights import load_backbone, load_weights, save_weights
from fer_utils.predict import predict_outputs
from fer_utils.training import TrainConfig, fit, tasks
from fer_utils.vision import landmarks


def test_points_are_those_of_the_labels():
    assert LandmarkNet.outputs == landmarks.POINTS
    points = np.random.default_rng(0).random((5, 4, 2)).astype(np.float32)
    assert np.allclose(landmarks.mirror_points(points), points[:, MIRROR_ORDER] * [-1, 1] + [1, 0], atol=1e-6)


# ---- Losses and measures ----


def at_distance(pixels: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and labeled points that differ by so many pixels, in x alone."""
    labeled = torch.full((len(pixels), 4, 2), 0.5)
    points = labeled.clone()
    points[:, :, 0] += torch.tensor(pixels)[:, None] / 48
    return points, labeled


@pytest.mark.parametrize("distance, expected", [(0.5, 0.5**2 / 2), (1, 0.5), (3, 3 - 0.5)])
def test_smooth_l1_by_hand(distance, expected):
    assert float(tasks.smooth_l1_loss(*at_distance([distance]))) == pytest.approx(expected / 2)  # y agrees


@pytest.mark.parametrize("distance, expected", [(1, 2 * np.log(3)), (5, 5 - (2 - 2 * np.log(5)))])
def test_wing_loss_by_hand(distance, expected):
    assert float(tasks.wing_loss(*at_distance([distance]))) == pytest.approx(expected / 2)


def test_wing_loss_has_no_step_where_its_parts_meet():
    below, above = (float(tasks.wing_loss(*at_distance([d]))) for d in (1.9999, 2.0001))
    assert 0 < above - below < 1e-3


def test_error_is_the_mean_distance_of_the_four_points_in_pixels():
    points, labeled = at_distance([0.0, 3.0])
    points[1, 0, 1] += 4 / 48  # one point is 5 pixels away
    assert torch.allclose(tasks.landmarks("wing").metric_fn(points, labeled), torch.tensor([0, (5 + 3 * 3) / 4]))


def test_best_is_the_highest_accuracy_and_the_lowest_error_and_the_first_of_equals():
    assert tasks.classification().best([0.2, 0.5, 0.5]) == 1
    assert tasks.landmarks("smooth_l1").best([3.0, 1.0, 1.0, 2.0]) == 1


def test_unknown_loss_lists_the_known_ones():
    with pytest.raises(ValueError, match="smooth_l1, wing"):
        tasks.landmarks("wings")


# ---- Training ----


class Small(nn.Module):
    """Points from a coarse look, in milliseconds; with what makes resuming hard: dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 6, stride=6), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, 8)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 0.5 + self.layers(images).unflatten(1, (4, 2)) / 48


def toy_points(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright square for each of the four points, in a dark image."""
    rng = np.random.default_rng(seed)
    corners = np.array([[8, 8], [32, 8], [8, 32], [32, 32]]) + rng.integers(-6, 7, (n, 4, 2))
    images = np.zeros((n, 48, 48), np.uint8)
    for image, squares in zip(images, corners, strict=True):
        for x, y in squares:
            image[y : y + 6, x : x + 6] = 255
    return images, ((corners + 3) / 48).astype(np.float32)


TRAIN, VAL = toy_points(256, 0), toy_points(64, 1)
CONFIG = TrainConfig(epochs=3, batch_size=32, lr=0.02, precision="fp32")
WING = tasks.landmarks("wing")


def new_model() -> Small:
    set_seed(5)
    return Small()


@pytest.mark.parametrize("loss", tasks.LANDMARK_LOSSES)
def test_learns_points_and_keeps_the_epoch_with_the_lowest_error_on_val(loss):
    model, task = new_model(), tasks.landmarks(loss)
    config = TrainConfig(epochs=12, batch_size=32, lr=0.05, augment=Augment(rotate=0, scale=0), precision="fp32")
    result = fit(model, TRAIN, VAL, config, task=task)
    errors = result.history.val_error
    mean_position = 48 * np.linalg.norm(VAL[1] - TRAIN[1].mean(0), axis=2).mean()
    measured = 48 * np.linalg.norm(predict_outputs(model, VAL[0]) - VAL[1], axis=2).mean()
    assert errors.min() < 0.6 * mean_position
    assert measured == pytest.approx(errors.min(), abs=1e-3)
    assert errors[result.best_epoch - 1] == errors.min()


def test_weights_are_those_of_the_epoch_with_the_lowest_error():
    errors, model, after = iter([3.0, 1.0, 2.0]), new_model(), []
    on_val = replace(
        WING, metric_fn=lambda points, _: torch.full([len(points)], next(errors) if len(points) == 64 else 9)
    )
    result = fit(
        model, TRAIN, VAL, CONFIG, on_epoch=lambda _: after.append(model.layers[0].weight.clone()), task=on_val
    )
    assert result.best_epoch == 2
    assert torch.equal(model.layers[0].weight, after[1]) and not torch.equal(after[1], after[2])


def test_resumed_training_equals_uninterrupted_training(tmp_path, capsys):
    whole, resumed = new_model(), new_model()
    expected = fit(whole, TRAIN, VAL, CONFIG, checkpoint=tmp_path / "whole.pt", task=WING)
    fit(
        new_model(),
        TRAIN,
        VAL,
        CONFIG,
        checkpoint=tmp_path / "cut.pt",
        on_epoch=lambda row: row["epoch"] == 2,
        task=WING,
    )
    result = fit(resumed, TRAIN, VAL, CONFIG, checkpoint=tmp_path / "cut.pt", task=WING)
    assert "resumed after epoch 2" in capsys.readouterr().out
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    assert result.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))


def test_checkpoint_of_another_loss_is_refused(tmp_path):
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=tmp_path / "run.pt", task=WING)
    with pytest.raises(TrainingError, match="task: landmarks, wing there, landmarks, smooth_l1 here"):
        fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=tmp_path / "run.pt", task=tasks.landmarks("smooth_l1"))


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    fit(new_model(), TRAIN, VAL, CONFIG, checkpoint=path, on_epoch=lambda row: True, task=WING)
    kept, broken = path.read_bytes(), new_model()
    broken.register_forward_hook(lambda module, inputs, points: points * (float("nan") if module.training else 1))
    with pytest.raises(TrainingError, match=r"nan at step 1 of epoch 2.*epoch 1 is kept"):
        fit(broken, TRAIN, VAL, CONFIG, checkpoint=path, task=WING)
    assert path.read_bytes() == kept


# ---- The network ----


@pytest.mark.parametrize(
    "stem, kernel, side, cost",
    [("imagenet", 7, 2, 0.0947), ("middle", 3, 3, 0.314), ("stride2", 3, 3, 0.3126), ("small", 3, 6, 1.25)],
)
def test_size_and_cost_of_each_stem(stem, kernel, side, cost):
    model = build_model("landmark_net", stem=stem).eval()
    body = count_params(resnet18()) - (512 + 1) * 1000 - 3 * 64 * 7**2  # without its classifier and its first kernels
    assert count_params(model) == body + 64 * kernel**2 + (512 + 1) * 256 + (256 + 1) * 8
    assert count_gmacs(model) == pytest.approx(cost, rel=1e-2)
    images = torch.randn(3, 1, 48, 48)
    assert model.backbone(images).shape == (3, 512, side, side)
    points = model(images)
    assert points.shape == (3, 4, 2) and (points - 0.5).abs().max() < 0.1  # starts near the middle


def test_unknown_stem_lists_the_known_ones():
    with pytest.raises(ValueError, match=", ".join(STEMS)):
        build_model("landmark_net", stem="tiny")


@pytest.mark.parametrize("stem", STEMS)
def test_imagenet_weights_see_gray_as_three_equal_channels(stem):
    set_seed(0)
    original = resnet18().eval()
    backbone = resnet18_backbone(stem, original.state_dict()).eval()
    gray = torch.randn(2, 1, 48, 48)
    if stem == "imagenet":
        expected = nn.Sequential(*list(original.children())[:-2])(gray.expand(-1, 3, -1, -1))
        assert torch.allclose(backbone(gray), expected, atol=1e-4)
    assert torch.equal(backbone.layer4[1].conv2.weight, original.layer4[1].conv2.weight)


def test_without_network_there_are_no_imagenet_weights_and_it_is_said(tmp_path, monkeypatch, capsys):
    def no_network(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    internet.server_problem.cache_clear()
    assert imagenet_weights("resnet18") is None
    assert "out of reach (URLError): the network starts from scratch" in capsys.readouterr().out


def test_imagenet_weights_in_the_cache_need_no_network_unless_they_are_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", None)
    cached = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    torch.save(resnet18().state_dict(), cached)
    assert imagenet_weights("resnet18")["conv1.weight"].shape == (64, 3, 7, 7)
    cached.write_bytes(cached.read_bytes()[:5000])
    assert imagenet_weights("resnet18") is None
    assert "resnet18-f37072fd.pth is damaged, delete it" in capsys.readouterr().out


# ---- Its backbone, for others to start from ----


def a_classifier(stem):
    return build_model("resnet18", stem=stem)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    set_seed(1)
    path = tmp_path_factory.mktemp("weights") / "landmarks.pt"
    model = build_model("landmark_net", stem="imagenet")
    save_weights(model, path)
    return model, path


def test_a_classifier_starts_from_the_landmark_backbone_and_keeps_its_head(trained):
    model, path = trained
    fresh = a_classifier("imagenet")
    head = fresh.head[3].weight.clone()
    load_backbone(fresh, path)
    assert all(map(torch.equal, fresh.backbone.state_dict().values(), model.backbone.state_dict().values()))
    assert torch.equal(fresh.head[3].weight, head)


def test_a_backbone_that_does_not_fit_is_refused(trained, tmp_path):
    _, path = trained
    with pytest.raises(TrainingError, match=r"stem: imagenet there, small here; backbone\.conv1\.weight"):
        load_backbone(a_classifier("small"), path)
    save_weights(build_model("landmark_net", stem="middle"), tmp_path / "middle.pt")  # its tensors would fit
    with pytest.raises(TrainingError, match="stem: middle there, small here"):
        load_backbone(a_classifier("small"), tmp_path / "middle.pt")
    with pytest.raises(TrainingError, match="stem: middle there, small here"):
        load_weights(build_model("landmark_net", stem="small"), tmp_path / "middle.pt")
    with pytest.raises(TrainingError, match='no "backbone" in this BaselineCNN'):
        load_backbone(build_model("baseline_cnn"), path)
    save_weights(build_model("baseline_cnn"), tmp_path / "other.pt")
    with pytest.raises(TrainingError, match=r'no "backbone" in .*other\.pt'):
        load_backbone(a_classifier("imagenet"), tmp_path / "other.pt")


@pytest.mark.parametrize("content", [None, [1, 2], {"weights": {}}])
def test_a_file_that_holds_no_saved_model_is_refused(content, tmp_path):
    path = tmp_path / "nonsense.pt"
    if content is not None:
        torch.save(content, path)
    for load in (load_backbone, load_weights):
        with pytest.raises(TrainingError, match=r"nonsense\.pt is (damaged|missing)"):
            load(a_classifier("imagenet"), path)
