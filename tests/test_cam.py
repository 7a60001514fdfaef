"""Grad-CAM by hand against the grad-cam package and closed forms; regions, alignment, and tests of maps."""

import copy
import gc

import numpy as np
import pytest
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy.stats import spearmanr
from torch import nn

from fer_utils import cam, plots
from fer_utils.augment import move_points, to_float, warp
from fer_utils.errors import TrainingError
from fer_utils.models import build_model
from fer_utils.models.baseline import BaselineCNN
from fer_utils.models.efficientnet import EfficientNetB0
from fer_utils.models.resnet import ATTENTIONS, STEMS
from fer_utils.models.weights import load_classifier, save_weights
from fer_utils.vision import regions
from fer_utils.vision.landmarks import mirror_points

FACE = np.array([[0.3, 0.4], [0.7, 0.4], [0.35, 0.8], [0.65, 0.8]], np.float32)  # upright, eyes 19.2 pixels apart
BUILDERS = {
    "baseline": BaselineCNN,
    "attention": lambda: build_model("resnet18", attention="gates"),
    "efficientnet": EfficientNetB0,
}


@pytest.fixture(scope="module", params=BUILDERS)
def model(request):
    torch.manual_seed(0)
    model = BUILDERS[request.param]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.inference_mode():
        model(torch.randn(16, 1, 48, 48))  # sets the norms: without them nothing reaches the end of EfficientNet
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 48, 48)).astype(np.uint8)


TARGETS = np.array([3, 0, 6, 3, 5])


# ---- Maps ----


def from_zero_to_one(maps):
    maps = maps - maps.min((1, 2), keepdims=True)
    return maps / maps.max((1, 2), keepdims=True)


@pytest.mark.parametrize("method, package_method", [("Grad-CAM", GradCAM), ("Layer-CAM", LayerCAM)])
def test_by_hand_equals_the_package(model, images, method, package_method):
    """The package shifts and scales every map to 0..1."""
    compared = 0
    layers = list(cam.LAYERS[type(model)])
    _, maps = cam.heat_maps(model, images, layers, TARGETS)
    for layer in layers:
        with package_method(model=model, target_layers=[cam.find_layer(model, layer)]) as package:
            theirs = package(to_float(torch.from_numpy(images)), [ClassifierOutputTarget(int(t)) for t in TARGETS])
        ours = cam.upsample(maps[method, layer])
        highest = ours.max((1, 2))  # to which the package adds 1e-7 before it divides
        clear = (np.ptp(ours, (1, 2)) > 0.05 * highest) & (highest > 1e-5)  # else rounding is stretched as well
        assert np.allclose(from_zero_to_one(ours[clear]), theirs[clear], atol=1e-4)
        compared += clear.sum()
    assert compared >= len(layers) * len(images) / 3


def test_grad_cam_on_numbers_worked_out_by_hand():
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])  # one image, two channels, 1x2 positions
    gradients = torch.tensor([[[[4.0, 0.0]], [[-2.0, 0.0]]]])  # weights 2 and -1
    assert cam.grad_cam(activations, gradients).tolist() == [[[0.0, 0.0]]]  # 2-3 and 4-5 are cut off
    assert cam.grad_cam(activations, -gradients).tolist() == [[[1.0, 1.0]]]


def test_layer_cam_on_numbers_worked_out_by_hand():
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, -5.0]]]])  # one image, two channels, 1x2 positions
    gradients = torch.tensor([[[[4.0, -1.0]], [[2.0, 3.0]]]])
    assert cam.layer_cam(activations, gradients).tolist() == [[[10.0, 0.0]]]  # 4+6; -15 is cut off


def test_methods_of_the_package_are_not_stretched(images):
    model = BaselineCNN().eval()
    methods = cam.METHODS | {
        "package": cam.from_package(GradCAM, model),
        "Eigen-CAM": cam.from_package(EigenCAM, model),
    }
    _, maps = cam.heat_maps(model, images, ["block3"], TARGETS, methods)
    assert np.allclose(maps["package", "block3"], maps["Grad-CAM", "block3"], rtol=1e-4, atol=1e-9)
    assert maps["Eigen-CAM", "block3"].shape == (5, 12, 12) and (maps["Eigen-CAM", "block3"].max((1, 2)) > 0).all()
    assert not any(module._forward_hooks for module in model.modules())


def test_before_average_and_linear_layer_it_is_the_class_activation_map(images):
    """Zhou et al. 2016: there the weights are those of the linear layer, here divided by the number of positions."""
    torch.manual_seed(0)
    model = EfficientNetB0().eval()
    _, maps = cam.heat_maps(model, images, ["stage8"], TARGETS)
    with torch.inference_mode():
        features = model.backbone(to_float(torch.from_numpy(images)))  # (5,1280,2,2)
        weights = model.head[-1].weight[TARGETS]  # (5,1280)
        expected = torch.einsum("nc,nchw->nhw", weights, features).relu() / 4
    assert expected.max() > 0
    assert np.allclose(maps["Grad-CAM", "stage8"], expected, rtol=1e-3, atol=1e-6)


def test_each_map_is_that_of_its_own_image_and_target(model, images):
    layer = list(cam.LAYERS[type(model)])[-1]
    logits, maps = cam.heat_maps(model, images, [layer], TARGETS, batch_size=2)
    for i in range(len(images)):
        alone_logits, alone = cam.heat_maps(model, images[i : i + 1], [layer], TARGETS[i : i + 1])
        assert np.allclose(alone_logits[0], logits[i], rtol=1e-3, atol=1e-4 * np.abs(logits).max())
        for key, own in alone.items():
            assert np.allclose(own[0], maps[key][i], rtol=1e-2, atol=1e-3 * maps[key].max())


def test_nothing_is_left_in_the_model(model, images):
    layers = list(cam.LAYERS[type(model)])
    model.zero_grad()  # the package leaves gradients
    model.train()
    cam.heat_maps(model, images, layers, TARGETS)
    assert model.training
    model.eval()
    with pytest.raises(RuntimeError):  # the input has the wrong number of channels
        cam.activations_and_gradients(model, torch.zeros(1, 3, 48, 48), layers, torch.tensor([0]))
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_stays_flat(images):
    model = BaselineCNN().eval()

    def tensors():
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    cam.heat_maps(model, images, ["block3"], TARGETS)
    before = tensors()
    for _ in range(3):
        cam.heat_maps(model, images, ["block1", "block3"], TARGETS)
    assert tensors() == before


def test_unknown_layer_lists_the_known_ones(images):
    with pytest.raises(ValueError, match="no layer 'layer5' in ResNet18; choose one of layer1, layer2, layer3, layer4"):
        cam.find_layer(build_model("resnet18"), "layer5")
    with pytest.raises(ValueError, match="lists no layers"):
        cam.heat_maps(nn.Flatten(), images, ["layer1"], TARGETS)


def test_enlarged_maps_keep_their_level_and_density_has_mean_one():
    assert np.allclose(cam.upsample(np.full((1, 3, 3), 2.0, np.float32)), 2)
    maps = np.random.default_rng(0).random((3, 48, 48))
    maps[1] = 0
    found = cam.density(maps)
    assert np.allclose(found[[0, 2]].mean((1, 2)), 1) and np.isnan(found[1]).all()


def test_maps_are_drawn_on_one_scale():
    maps = [np.full((2, 2), 1.0), np.full((6, 6), 5.0), np.full((1, 1), np.nan)]
    fig = plots.plot_maps(np.zeros((3, 48, 48)), maps, (0, 4), "level", columns=3)
    heats = [ax.images[1] for ax in fig.axes[:3]]
    assert {heat.get_clim() for heat in heats} == {(0, 4)}
    assert all(heat.get_extent() == [-0.5, 47.5, 47.5, -0.5] for heat in heats)
    assert fig.axes[3].get_ylabel() == "level"


def test_scale_ends_at_a_whole_number_that_nearly_all_pixels_are_below():
    panels = [np.linspace(0, 2.5, 300).reshape(15, 20), np.full((1, 1), np.nan), np.array([[40.0]])]
    assert cam.scale_of(panels) == (0, 3)


# ---- Regions ----


def regions_at(masks, x, y):
    return regions.REGIONS[int(np.flatnonzero(masks[0, :, round(48 * y - 0.5), round(48 * x - 0.5)])[0])]


def test_every_pixel_lies_in_one_region_and_landmarks_in_theirs():
    masks = regions.region_masks(FACE[None])
    assert masks.shape == (1, 5, 48, 48) and (masks.sum(1) == 1).all()
    where = {(0.3, 0.4): "eyes", (0.7, 0.4): "eyes", (0.35, 0.8): "mouth", (0.65, 0.8): "mouth", (0.5, 0.8): "mouth"}
    where |= {(0.5, 0.6): "nose", (0.2, 0.65): "rest of face", (0.5, 0.15): "rest of face", (0.02, 0.02): "background"}
    assert {place: regions_at(masks, *place) for place in where} == where


def test_regions_are_as_large_as_the_ellipses():
    masks = regions.region_masks(FACE[None])[0].sum((1, 2))
    distance = 0.4 * 48
    _, _, width, height = regions.ELLIPSES["mouth"]
    assert masks[regions.REGIONS.index("mouth")] == pytest.approx(np.pi * width * height * distance**2, rel=0.05)


def test_mirrored_face_has_mirrored_regions():
    tilted = FACE + np.array([[0, 0.03], [0, -0.03], [0.02, 0.02], [0.02, -0.02]], np.float32)
    masks = regions.region_masks(np.stack([tilted, mirror_points(tilted)]))
    assert (masks[1] == masks[0][..., ::-1]).mean() > 0.999  # rounding may move a pixel on an edge


def test_regions_turn_with_the_face():
    quarter = np.stack([1 - FACE[:, 1], FACE[:, 0]], 1)  # clockwise: the eyes are on the right
    masks = regions.region_masks(np.stack([FACE, quarter]))
    assert (masks[1] == np.rot90(masks[0], -1, (1, 2))).mean() > 0.999


def test_eyes_at_the_same_place_are_survived():
    assert (regions.region_masks(np.full((1, 4, 2), 0.5, np.float32)).sum(1) == 1).all()


def test_shares_of_one_pixel_of_an_even_map_and_of_none():
    masks = regions.region_masks(np.stack([FACE] * 3))
    maps = np.zeros((3, 48, 48), np.float32)
    maps[0, 38, 24] = 2.0  # in the mouth
    maps[1] = 0.1
    shares = regions.region_share(maps, masks)
    assert shares[0].tolist() == [0, 0, 1, 0, 0]
    assert np.allclose(shares[1], masks[1].mean((1, 2)))
    assert np.isnan(shares[2]).all()


def test_half_of_a_map_lies_on_the_brightest_pixels_of_the_area():
    maps, area = np.ones((4, 48, 48), np.float32), np.zeros((4, 48, 48), bool)
    area[:, :10, :10] = True
    maps[1, 0, 0], maps[1, 20, 20] = 200, 9999  # one pixel has more than half; outside of the area nothing counts
    maps[2, :2, :10] = 4  # 20 pixels have half
    maps[3] = 0
    found = regions.half_area(maps, area)
    assert found[:3].tolist() == [0.5, 0.01, 0.2] and np.isnan(found[3])


def test_aligned_faces_have_their_landmarks_on_the_template():
    angle, scale = np.deg2rad(20), 0.8
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = ((FACE - 0.5) @ turn.T + 0.5 + [0.05, -0.03]).astype(np.float32)
    matrices = torch.from_numpy(regions.align(np.stack([FACE, points]), FACE))
    moved = move_points(torch.from_numpy(np.stack([FACE, points])), matrices)
    assert np.allclose(moved, FACE, atol=1e-5)
    spot = np.zeros((1, 48, 48), np.float32)
    x, y = np.round(48 * points[0] - 0.5).astype(int)
    spot[0, y, x] = 1
    found = warp(torch.from_numpy(spot)[:, None], matrices[1:])[0, 0].numpy()
    y, x = np.unravel_index(found.argmax(), found.shape)
    assert abs((x + 0.5) / 48 - FACE[0, 0]) < 1.5 / 48 and abs((y + 0.5) / 48 - FACE[0, 1]) < 1.5 / 48


# ---- Is a map true? ----


class Corner(nn.Module):
    """Says class 1 if the upper left quarter varies a lot, and looks at nothing else."""

    def forward(self, images):
        contrast = images[:, 0, :24, :24].flatten(1).std(1)
        return torch.stack([torch.ones_like(contrast), 4 * contrast], 1)


def test_true_maps_fade_fast_and_all_curves_share_their_ends(images):
    true = np.zeros((5, 48, 48), np.float32)
    true[:, :24, :24] = 1
    both = cam.deletion_insertion(Corner(), images, {"good": true, "bad": -true}, np.ones(5, np.int64))
    good, bad = both["good"], both["bad"]
    assert good["deletion"].shape == good["insertion"].shape == (5, 11)
    assert (good["deletion"].mean(1) < bad["deletion"].mean(1) - 0.2).all()
    assert (good["insertion"].mean(1) > bad["insertion"].mean(1) + 0.2).all()
    assert (cam.fade_score(good) > cam.fade_score(bad) + 0.4).all()
    with torch.inference_mode():
        untouched = Corner()(to_float(torch.from_numpy(images))).softmax(1)[:, 1].numpy()
    for curves in (good, bad):
        assert np.allclose(curves["deletion"][:, 0], untouched, atol=1e-6)
        assert np.allclose(curves["insertion"][:, -1], untouched, atol=1e-6)
        assert np.allclose(curves["deletion"][:, -1], curves["insertion"][:, 0], atol=1e-6)
        assert (curves["insertion"][:, 0] < untouched).all()


def test_a_quarter_blurred_is_what_the_map_says(images):
    """With four steps the first one of deletion blurs exactly the corner, and the first one of insertion shows it."""
    true = np.zeros((5, 48, 48), np.float32)
    true[:, :24, :24] = 1
    curves = cam.deletion_insertion(Corner(), images, {"true": true}, np.ones(5, np.int64), steps=4)["true"]
    assert np.allclose(curves["deletion"][:, 1], curves["deletion"][:, -1], atol=1e-6)
    assert np.allclose(curves["insertion"][:, 1], curves["insertion"][:, -1], atol=1e-6)


def test_area_under_a_straight_line_and_its_score():
    rising, falling = np.linspace(0, 1, 11)[None], np.linspace(1, 0, 11)[None] ** 2
    assert cam.area_under(rising) == pytest.approx(0.5)
    assert cam.fade_score({"insertion": rising, "deletion": falling}) == pytest.approx(0.5 - 0.335)


def test_pixels_are_ordered_from_large_to_small_and_ties_at_random():
    maps = np.zeros((2, 4, 4))
    maps[0, 2, 1], maps[0, 0, 3] = 5, 3
    places = cam.pixel_order(maps)
    assert places[0, 9] == 0 and places[0, 3] == 1
    assert (np.sort(places, 1) == np.arange(16)).all()
    assert (places[1] != np.arange(16)).any() and (cam.pixel_order(maps, seed=1) != places).any()


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    maps, others = rng.integers(0, 9, (2, 3, 6, 6)).astype(float)
    others[2] = 1
    found = cam.rank_correlation(maps, others)
    for i in range(2):
        assert found[i] == pytest.approx(spearmanr(maps[i].ravel(), others[i].ravel()).statistic)
    assert np.isnan(found[2])


# ---- Control heads ----


def new_head(head, seed):
    torch.manual_seed(seed)
    head = copy.deepcopy(head)
    for module in head:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return head


def test_body_and_head_are_the_network(model, images):
    body, head = cam.split_head(model)
    shown = to_float(torch.from_numpy(images))
    with torch.inference_mode():
        assert torch.equal(head(body(shown)), model(shown))
        assert body(shown).ndim == 4
    assert head is model.get_submodule(cam.HEADS[type(model)])  # the network itself stays as it is


@pytest.mark.parametrize("model", ["baseline"], indirect=True)
def test_maps_of_the_networks_own_head_equal_the_package(model, images):
    layer = list(cam.LAYERS[type(model)])[1]
    body, head = cam.split_head(model)
    [ours] = cam.maps_of_heads(body, [head], images, layer, TARGETS, batch_size=2)
    with GradCAM(model=model, target_layers=[cam.find_layer(model, layer)]) as package:
        theirs = package(to_float(torch.from_numpy(images)), [ClassifierOutputTarget(int(t)) for t in TARGETS])
    clear = ours.max((1, 2)) > 1e-5  # else the package's 1e-7 and rounding weigh too much
    assert clear.sum() >= 2

    def scale(maps):
        maps = maps - maps.min((1, 2), keepdims=True)
        return maps / (1e-7 + maps.max((1, 2), keepdims=True))

    enlarged = scale(cam.upsample(scale(ours[clear])))  # the package scales before and after it enlarges
    assert np.allclose(enlarged, theirs[clear], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", cam.METHODS)
def test_maps_of_a_head_are_those_of_the_network_with_this_head(model, images, method):
    layer = list(cam.LAYERS[type(model)])[-1]
    body, own = cam.split_head(model)
    heads = [own, *(new_head(own, seed) for seed in (1, 2))]
    found = cam.maps_of_heads(body, heads, images, layer, TARGETS, cam.METHODS[method])
    for head, maps in zip(heads, found, strict=True):
        other = copy.deepcopy(model)
        setattr(other, cam.HEADS[type(model)], head)
        _, expected = cam.heat_maps(other, images, [layer], TARGETS)
        expected = expected[method, layer]
        assert np.allclose(maps, expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert found.max((1, 2, 3)).min() > 0 and not np.allclose(found[0], found[1], rtol=0.1)


def test_rank_among_controls():
    controls = np.array([0.1, 0.2, 0.3, 0.4])
    assert cam.rank_p_value(0.5, controls) == 1 / 5
    assert cam.rank_p_value(0.4, controls) == 2 / 5  # a tie counts against the value
    assert cam.rank_p_value(0.0, controls) == 1
    assert cam.rank_p_value(0.5, np.array([0.1, np.nan])) == 2 / 3
    assert cam.rank_p_value(np.nan, controls) == 1


def test_nothing_is_left_of_what_the_controls_reach():
    assert cam.what_is_left(0.9, 0.5).startswith("nothing: it is not above 1")
    assert cam.what_is_left(1.5, 1.6) == "nothing: the controls reach 1.60"
    assert cam.what_is_left(1.5, 0.9) == "all of it: the controls reach only 0.90"
    assert cam.what_is_left(2.5, 2.0) == "0.50 of the 1.50 above 1: the controls reach 2.00"


def test_no_claim_is_confirmed_without_its_controls():
    both, one = {"its area": True, "the eyes": True}, {"its area": True, "the eyes": False}
    assert cam.claim_verdict(both, True, 0.04) == (
        "confirmed: more than its area, more than the eyes, more than the controls"
    )
    assert cam.claim_verdict(both, False, 0.04) == (
        "not confirmed: more than its area, more than the eyes, not more than the controls"
    )
    assert cam.claim_verdict(one, True, 0.04).startswith("partly confirmed: more than its area, not more than the eyes")
    assert cam.claim_verdict(both, True, 5 / 21).startswith("cannot be shown with so few controls")


# ---- Networks from files ----


@pytest.mark.parametrize(
    "name, options",
    [("baseline_cnn", {}), ("efficientnet_b0", {"stem": "small"})]
    + [("resnet18", {"stem": stem}) for stem in STEMS]
    + [("resnet18", {"attention": attention}) for attention in ATTENTIONS],
)
def test_networks_are_rebuilt_from_their_files(name, options, images, tmp_path):
    model = build_model(name, **options).eval()
    save_weights(model, tmp_path / "model.pt")
    back = load_classifier(tmp_path / "model.pt")
    shown = to_float(torch.from_numpy(images[:2]))
    with torch.inference_mode():
        assert not back.training and torch.equal(back(shown), model(shown))


def test_what_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"model\.pt is missing"):
        load_classifier(tmp_path / "model.pt")
    save_weights(build_model("landmark_net"), tmp_path / "model.pt")
    with pytest.raises(TrainingError, match="holds a landmark_net, which is not a classifier"):
        load_classifier(tmp_path / "model.pt")
