"""The local-global network: regions worked out by hand, matched costs, attention, and regions that follow landmarks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fer_utils.augment import to_float
from fer_utils.cost import count_gmacs, count_params
from fer_utils.device import set_seed
from fer_utils.errors import TrainingError
from fer_utils.models import build_model, local_global
from fer_utils.models.landmark import LandmarkNet
from fer_utils.models.local_global import (
    QUARTERS,
    VIEWS,
    RegionFeatures,
    SpatialGates,
    attend,
    attention_maps,
    cut_regions,
)
from fer_utils.models.weights import load_weights, save_weights
from fer_utils.training import TrainConfig, fit
from fer_utils.training.tasks import classification

LOCAL = 4 * (256 * 64 + 2 * 9 * 64 * 64)  # weights of three convolutions for each of four regions
IMAGES = torch.randn(3, 1, 48, 48, generator=torch.Generator().manual_seed(0))


class Fixed(LandmarkNet):
    """Answers the same four points for every face, and remembers what it was shown."""

    def __init__(self, points) -> None:
        super().__init__()
        self.backbone = torch.nn.BatchNorm2d(1)
        self.points = torch.tensor(points)

    def forward(self, images):
        self.shown, self.was_training = images, self.training
        self.backbone(images)
        return self.points.expand(len(images), 4, 2)


# ---- Regions ----


def centers(*points, n=2):
    return torch.tensor(points).expand(n, 4, 2)


@pytest.mark.parametrize("size", [(12, 12), (6, 8)])
def test_quarters_are_the_four_corners_as_they_are(size):
    features = torch.randn(2, 5, *size)
    regions = cut_regions(features, centers(*QUARTERS))
    half, wide = size[0] // 2, size[1] // 2
    expected = [features[:, :, y : y + half, x : x + wide] for y in (0, half) for x in (0, wide)]
    assert regions.shape == (2, 4, 5, half, wide)
    assert torch.allclose(regions, torch.stack(expected, 1), atol=1e-5)


def test_the_whole_map_is_seen_four_times_at_half_its_resolution():
    features = torch.randn(2, 5, 12, 12)
    regions = cut_regions(features, centers(*QUARTERS), share=1.0)
    assert torch.allclose(regions, F.avg_pool2d(features, 2)[:, None].expand(-1, 4, -1, -1, -1), atol=1e-5)


def test_each_region_lies_around_its_own_point_of_its_own_face():
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    features = torch.stack([column + 0.5, row + 0.5])[None].expand(2, 2, 12, 12) / 12  # x and y of every position
    points = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(1)) / 2 + 0.25  # squares inside the map
    assert torch.allclose(cut_regions(features, points).mean((3, 4)), points, atol=1e-5)


def test_a_square_never_reaches_beyond_the_map():
    features = torch.randn(2, 3, 12, 12)
    outside = centers((-0.5, 0.1), (1.4, 0.0), (0.2, 2.0), (1.0, 1.0))
    assert torch.allclose(cut_regions(features, outside), cut_regions(features, centers(*QUARTERS)), atol=1e-5)


def test_each_region_has_kernels_of_its_own():
    set_seed(0)
    part = RegionFeatures(16, 4).eval()
    regions = torch.randn(2, 4, 16, 6, 6)
    changed = regions.clone()
    changed[:, 2] += 1
    same = torch.isclose(part(regions), part(changed)).all(0)  # (16,)
    assert same.tolist() == [True] * 8 + [False] * 4 + [True] * 4
    equal = part(regions[:, :1].expand(-1, 4, -1, -1, -1)).unflatten(1, (4, 4))
    assert not torch.allclose(equal[:, 0], equal[:, 1], atol=1e-3)


# ---- Attention ----


def test_spatial_gates_multiply_every_position_by_a_number_between_0_and_1():
    set_seed(0)
    gates, features = SpatialGates().eval(), torch.randn(2, 8, 5, 5)
    seen = torch.stack([features.mean(1), features.amax(1)], 1)
    expected = F.conv2d(seen, gates.gates[0].weight, padding=1).sigmoid()
    assert expected.shape == (2, 1, 5, 5) and expected.std() > 0.01
    assert torch.allclose(gates(features), features * expected, atol=1e-4)


def test_spatial_gates_do_not_close_when_features_are_large():
    set_seed(0)
    gates = SpatialGates()
    for scale in (1, 1000):
        found = gates.gates(scale * torch.randn(8, 2, 12, 12).abs())
        assert 0.4 < found.mean() < 0.6 and 0.1 < found.std() < 0.3


def test_attention_maps_are_those_applied_and_leave_no_hook():
    set_seed(0)
    block, features = attend(32).eval(), torch.randn(2, 32, 6, 6)
    [spatial] = attention_maps(block, features)
    assert torch.allclose(block(features), features * block[0].gates(features) * spatial, atol=1e-5)
    assert not block[1].gates._forward_hooks


def test_attention_sits_behind_three_stages():
    model = build_model("local_global", attention=True).eval()
    assert [tuple(gates.shape) for gates in attention_maps(model, IMAGES)] == [(3, 1, s, s) for s in (12, 6, 3)]
    assert attention_maps(build_model("local_global", view="local", attention=True).eval(), IMAGES)[0].shape == (
        3,
        1,
        12,
        12,
    )
    assert attention_maps(build_model("local_global").eval(), IMAGES) == []


# ---- The network ----


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_gives_seven_logits_and_sees_what_it_should(view):
    model = build_model("local_global", view=view).eval()
    whole, local = model.look(IMAGES)
    assert (whole is None) == (view == "local") and (local is None) == (view == "global")
    assert whole is None or whole.shape == (3, 2048)
    assert local is None or local.shape == (3, 256)
    assert model(IMAGES).shape == (3, 7)


def test_what_regions_cost_by_hand_and_that_the_control_costs_the_same():
    alone, fused, control = (
        build_model("local_global", view="global"),
        build_model("local_global"),
        build_model("local_global", regions="whole"),
    )
    assert count_params(fused) - count_params(alone) == LOCAL + 3 * 2 * 256 + 256 * 256
    assert count_params(fused) == count_params(control)
    cost = {model: count_gmacs(model) for model in (alone, fused, control)}
    assert 1e9 * (cost[fused] - cost[alone]) == pytest.approx(LOCAL * 36 + 256 * 256, rel=0.05)
    assert cost[fused] == pytest.approx(cost[control], rel=1e-3)
    assert cost[alone] == pytest.approx(0.211, rel=0.01)


def test_the_same_seed_gives_all_variants_the_same_resnet50():
    weights = []
    for options in ({"view": "global"}, {}, {"regions": "whole"}, {"attention": True}):
        set_seed(4)
        model = build_model("local_global", **options)
        weights.append([model.early.conv1.weight, model.late[-3][-1].conv3.weight])
    assert all(torch.equal(a, b) for other in weights[1:] for a, b in zip(weights[0], other, strict=True))


def test_color_images_of_another_size():
    model = build_model("local_global", channels=3, regions="landmarks", landmarks=Fixed(QUARTERS)).eval()
    images = to_float(torch.randint(0, 256, (2, 3, 100, 100), dtype=torch.uint8))
    assert images.shape == (2, 3, 100, 100) and images.abs().max() < 3
    assert model(images).shape == (2, 7)
    assert model.landmarks.shown.shape == (2, 1, 48, 48)
    assert count_gmacs(model, (3, 100, 100)) > 0.8


def test_regions_around_the_middles_of_quarters_are_the_quarters():
    set_seed(0)
    plain = build_model("local_global").eval()
    follows = build_model("local_global", regions="landmarks", landmarks=Fixed(QUARTERS)).eval()
    follows.load_state_dict(plain.state_dict(), strict=False)
    assert torch.allclose(plain(IMAGES), follows(IMAGES), atol=1e-5)
    assert torch.allclose(follows.landmarks.shown, IMAGES, atol=1e-5)
    follows.landmarks.points = follows.landmarks.points.flip(0)
    assert not torch.allclose(plain(IMAGES), follows(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"view": "both"}, "no view 'both'; choose one of global, local, fused"),
        ({"regions": "eyes"}, "no regions 'eyes'; choose one of patches, whole, landmarks"),
        ({"regions": "landmarks"}, "need a landmark network"),
        ({"landmarks": Fixed(QUARTERS)}, "need a landmark network"),
        ({"stem": "tiny"}, "no stem 'tiny'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        build_model("local_global", **options)


# ---- Training ----


def test_the_landmark_network_stays_as_it_is_while_the_rest_learns():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 48, 48)).astype(np.uint8), np.arange(8) % 7
    shares = np.eye(7, dtype=np.float32)[labels] * 0.5 + 0.5 / 7
    set_seed(0)
    model = build_model("local_global", regions="landmarks", landmarks=Fixed(QUARTERS))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainConfig(epochs=1, batch_size=4, precision="fp32")
    result = fit(model, (images, shares), (images, labels), config)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in before if name.startswith("landmarks.")} & moved == set()
    assert {"early.conv1.weight", "local.layers.0.weight", "head.1.weight"} <= moved
    assert not model.train().landmarks.training and not model.landmarks.was_training
    assert np.isfinite(result.history.train_loss).all()


def test_label_distributions_are_targets_like_labels():
    task, logits = classification(), torch.randn(5, 7)
    labels = torch.tensor([0, 1, 2, 3, 4])
    assert torch.isclose(task.loss(logits, F.one_hot(labels, 7).float()), task.loss(logits, labels))
    half = 0.5 * F.one_hot(labels, 7) + 0.5 * logits.softmax(1)
    expected = -(half * logits.log_softmax(1)).sum(1).mean()
    assert torch.isclose(task.loss(logits, half), expected)


def test_weights_of_other_regions_or_another_stem_are_refused(tmp_path):
    save_weights(build_model("local_global", stem="middle"), tmp_path / "patches.pt")
    with pytest.raises(TrainingError, match="regions: patches there, whole here"):
        load_weights(build_model("local_global", stem="middle", regions="whole"), tmp_path / "patches.pt")
    with pytest.raises(TrainingError, match="stem: middle there, small here"):
        load_weights(build_model("local_global", stem="small"), tmp_path / "patches.pt")
    assert not load_weights(build_model("local_global", stem="middle"), tmp_path / "patches.pt").training


def test_regions_follow_the_face_when_it_is_mirrored():
    """The landmark network sees the image as it was augmented, so nothing has to be told about it."""
    set_seed(0)
    model = build_model("local_global", regions="landmarks", landmarks=build_model("landmark_net")).eval()
    with torch.no_grad():
        model.landmarks.head[-1].weight.mul_(50)  # so that an untrained network's points move visibly
        plain, mirrored = model.centers(IMAGES), model.centers(IMAGES.flip(-1))
        assert torch.allclose(plain, model.landmarks(IMAGES), atol=1e-4)
    assert plain.shape == (3, 4, 2) and not torch.allclose(plain, mirrored, atol=1e-3)


def test_a_checkpoint_does_not_mix_regions(tmp_path):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (4, 48, 48)).astype(np.uint8), np.arange(4)
    config = TrainConfig(epochs=1, batch_size=4, precision="fp32")
    fit(build_model("local_global", view="local"), data, data, config, checkpoint=tmp_path / "run.pt")
    with pytest.raises(TrainingError, match="regions: patches there, whole here"):
        fit(
            build_model("local_global", view="local", regions="whole"),
            data,
            data,
            replace(config),
            checkpoint=tmp_path / "run.pt",
        )


def test_regions_are_cut_at_the_same_places_in_half_precision(monkeypatch):
    used = []
    monkeypatch.setattr(local_global, "cut_regions", lambda *given: used.append(given) or cut_regions(*given))
    model = build_model("local_global", regions="landmarks", landmarks=build_model("landmark_net")).eval()
    with torch.inference_mode():
        model(IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            model(IMAGES)
    (_, exact, _), (features, in_half, _) = used
    assert torch.equal(exact, in_half) and features.dtype == torch.float32
