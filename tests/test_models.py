"""Networks: shapes, sizes, and costs worked out by hand."""

import json

import pytest
import torch

from fer_utils.cost import count_gmacs, count_params
from fer_utils.errors import TrainingError
from fer_utils.models import ARCHITECTURES, build_model, describe, make_spec
from fer_utils.models.resnet import ATTENTIONS, STEMS, ChannelShift, SqueezeExcite
from fer_utils.models.weights import load_backbone, load_weights, save_weights


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("landmark_net", "multi_task_net")])
def test_every_network_maps_faces_to_seven_logits(name):
    assert build_model(name).eval()(torch.zeros(3, 1, 48, 48)).shape == (3, 7)


def test_unknown_network_lists_the_known_ones():
    with pytest.raises(ValueError, match="baseline_cnn"):
        build_model("basline_cnn")
    with pytest.raises(ValueError, match="resnet18 has no option 'stems'; choose from num_classes, attention, stem"):
        build_model("resnet18", stems="middle")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_spec_makes_the_same_network_again_after_json(name):
    model = build_model(name)
    again = build_model(json.loads(json.dumps(model.spec)))
    assert again.spec == model.spec == make_spec(name)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_spec_is_complete_and_described_by_what_is_unusual():
    spec = build_model("resnet18", stem="middle").spec
    assert spec == {"name": "resnet18", "options": {"num_classes": 7, "attention": "none", "stem": "middle"}}
    assert (describe(spec), describe(make_spec("baseline_cnn"))) == ("resnet18, stem middle", "baseline_cnn")


def test_baseline_size_and_cost_by_hand():
    convolutions = [(1 * 9, 32, 48), (32 * 9, 64, 24), (64 * 9, 128, 12)]  # weights per output, channels, width
    params = sum((w + 1) * c for w, c, _ in convolutions) + (128 * 36 + 1) * 512 + (512 + 1) * 7
    macs = sum(w * c * width**2 for w, c, width in convolutions) + 128 * 36 * 512 + 512 * 7
    model = build_model("baseline_cnn").train()
    assert count_params(model) == params
    assert count_gmacs(model) == pytest.approx(macs / 1e9, rel=1e-6)
    assert model.training  # left as it was found


# ---- ResNet18 with and without attention ----

BOTTLENECK = 512 * 32 + 32 + 32 * 512 + 512  # two 1x1 convolutions and their biases


@pytest.mark.parametrize("attention, more", [("none", 0), ("gates", BOTTLENECK), ("shift", BOTTLENECK)])
def test_size_of_resnet18_by_hand(attention, more):
    """Four stages of two blocks of two 3x3 convolutions, each with a norm; a 1x1 convolution where they widen."""
    body = 64 * 7**2 + 2 * 64 + 4 * (64 * 64 * 9 + 2 * 64)  # stem, then the first stage
    for narrow, wide in [(64, 128), (128, 256), (256, 512)]:
        body += (narrow * 9 + 3 * wide * 9 + narrow) * wide + 5 * 2 * wide
    head = (512 + 1) * 256 + (256 + 1) * 7
    assert count_params(build_model("resnet18", attention=attention)) == body + more + head


@pytest.mark.parametrize("stem, cost", [("imagenet", 0.0947), ("middle", 0.314), ("stride2", 0.3126), ("small", 1.25)])
def test_attention_costs_next_to_nothing(stem, cost):
    plain, gates = (
        count_gmacs(build_model("resnet18", attention=attention, stem=stem)) for attention in ("none", "gates")
    )
    assert plain == pytest.approx(cost, rel=1e-2)
    assert plain < gates < plain + 3e-4


def block(kind: type, seed: int = 0):
    """A block of attention with few channels, and feature maps (5,16,3,3) to put into it."""
    torch.manual_seed(seed)
    return kind(16, 4), 3 * torch.randn(5, 16, 3, 3)


def excite(layers: torch.nn.Sequential, features: torch.Tensor) -> torch.Tensor:
    """What the two 1x1 convolutions say of the mean of every channel, as dense layers: (N,C,h,w) -> (N,C)."""
    first, second = layers[1], layers[3]
    hidden = (features.mean((2, 3)) @ first.weight.flatten(1).T + first.bias).relu()
    return hidden @ second.weight.flatten(1).T + second.bias


def test_gates_multiply_every_channel_by_a_number_between_0_and_1():
    attention, features = block(SqueezeExcite)
    gates = attention.gates(features)
    assert gates.shape == (5, 16, 1, 1) and (gates > 0).all() and (gates < 1).all() and gates.std() > 0.01
    expected = excite(attention.gates, features).sigmoid()[:, :, None, None] * features
    assert torch.allclose(attention(features), expected, atol=1e-6)


def test_shift_adds_a_number_to_every_channel():
    attention, features = block(ChannelShift)
    expected = features + excite(attention.shift, features)[:, :, None, None]
    assert torch.allclose(attention(features), expected, atol=1e-6)


def test_gates_before_the_mean_are_gates_on_the_mean():
    """The head averages over positions, and one gate is for all positions of a channel: the order does not matter."""
    attention, features = block(SqueezeExcite)
    vector = features.mean((2, 3))
    assert torch.allclose(attention(features).mean((2, 3)), vector * attention.gates(features).flatten(1), atol=1e-6)


def test_gates_and_shift_have_layers_of_the_same_sizes():
    sizes = [[tuple(p.shape) for p in kind().parameters()] for kind in (SqueezeExcite, ChannelShift)]
    assert sizes[0] == sizes[1] and sum(p.numel() for p in SqueezeExcite().parameters()) == BOTTLENECK


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_sits_between_backbone_and_head(attention):
    model, images = build_model("resnet18", attention=attention).eval(), torch.randn(2, 1, 48, 48)
    features = model.backbone(images)
    assert features.shape == (2, 512, 2, 2) and model.attention(features).shape == features.shape
    assert torch.equal(model(images), model.head(model.attention(features)))
    assert torch.equal(model(images), model.head(features)) == (attention == "none")


def test_unknown_attention_lists_the_known_ones():
    with pytest.raises(ValueError, match="no attention 'gate'; choose one of none, gates, shift"):
        build_model("resnet18", attention="gate")


@pytest.mark.parametrize(
    "attention, kind", [("none", "Identity"), ("gates", "SqueezeExcite"), ("shift", "ChannelShift")]
)
def test_options_reach_the_network(attention, kind):
    model = build_model("resnet18", num_classes=5, attention=attention, stem="middle")
    assert type(model.attention).__name__ == kind
    assert model.backbone.conv1.weight.shape == (64, 1, 3, 3)
    assert model.eval()(torch.zeros(2, 1, 48, 48)).shape == (2, 5)


def test_unknown_stem_lists_the_known_ones():
    with pytest.raises(ValueError, match=", ".join(STEMS)):
        build_model("resnet18", stem="tiny")


def test_weights_of_gates_are_refused_by_shift_and_by_none(tmp_path):
    path = tmp_path / "gates.pt"
    save_weights(build_model("resnet18", attention="gates"), path)
    for other in ("shift", "none"):
        with pytest.raises(
            TrainingError, match=rf"gates\.pt belongs to another run \(attention: gates there, {other} here"
        ):
            load_weights(build_model("resnet18", attention=other), path)
    assert not load_weights(build_model("resnet18", attention="gates"), path).training


def test_classifiers_start_from_the_backbone_of_the_landmark_network(tmp_path):
    torch.manual_seed(1)
    landmarks = build_model("landmark_net", stem="middle")
    save_weights(landmarks, tmp_path / "landmarks.pt")
    model = build_model("resnet18", attention="gates", stem="middle")
    others = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    assert load_backbone(model, tmp_path / "landmarks.pt") is model
    assert all(map(torch.equal, model.backbone.state_dict().values(), landmarks.backbone.state_dict().values()))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in others.items())
    with pytest.raises(TrainingError, match="stem: middle there, small here"):
        load_backbone(build_model("resnet18", stem="small"), tmp_path / "landmarks.pt")


# ---- Small networks for small images ----


def test_size_of_the_small_resnet_by_hand():
    """The stem; in each stage two convolutions a block; a 1x1 shortcut where the stage begins with more channels."""
    params = 9 * 20 + 2 * 20 + (160 + 1) * 7  # stem and head
    for narrow, wide, blocks in [(20, 20, 1), (20, 40, 2), (40, 80, 2), (80, 160, 1)]:
        first = 9 * narrow * wide + 9 * wide * wide + 4 * wide
        shortcut = narrow * wide + 2 * wide if narrow != wide else 0
        params += first + shortcut + (blocks - 1) * (2 * 9 * wide * wide + 4 * wide)
    model = build_model("small_resnet")
    assert count_params(model) == params == 625_187
    assert 0.0222 < count_gmacs(model) < 0.0232


def test_blocks_begin_as_their_shortcuts_unless_told_otherwise():
    features = torch.randn(2, 20, 24, 24)
    for zero_init in (True, False):
        block = build_model("small_resnet", zero_init=zero_init).eval().stages.stage2[0]
        is_shortcut = torch.allclose(block(features), block.shortcut(features).relu())
        assert is_shortcut == zero_init


def test_a_pooled_shortcut_sees_every_pixel():
    """A 1x1 convolution of stride 2 ignores three pixels in four."""
    for pool_shortcut, seen in [(True, 576), (False, 144)]:
        block = build_model("small_resnet", pool_shortcut=pool_shortcut).eval().stages.stage2[0]
        features = torch.randn(1, 20, 24, 24, requires_grad=True)
        block.shortcut(features).sum().backward()
        assert (features.grad.abs().sum((0, 1)) > 0).sum() == seen


@pytest.mark.parametrize("stem, width", [("stride2", 24), ("pool", 24), ("full", 48)])
def test_stems_of_the_small_resnet_set_the_size_of_the_first_stage(stem, width):
    assert build_model("small_resnet", stem=stem).stem(torch.zeros(2, 1, 48, 48)).shape == (2, 20, width, width)
    with pytest.raises(ValueError, match="there is no stem 'pol'; choose one of stride2, pool, full"):
        build_model("small_resnet", stem="pol")


def test_wide_and_deep_is_as_large_as_resnet18_without_its_head():
    model = build_model("small_resnet", width=64, deep=True)
    resnet18 = build_model("resnet18", stem="stride2")
    assert count_params(model.stages) == count_params(resnet18.backbone[4:])


def test_attention_of_the_transformer_equals_that_of_torch():
    block = build_model("small_vit").blocks[0].eval()
    tokens = torch.randn(2, 64, 72)
    theirs = torch.nn.MultiheadAttention(72, 4, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = (
        block.queries_keys_values.weight.data,
        block.queries_keys_values.bias.data,
    )
    theirs.out_proj.load_state_dict(block.project.state_dict())
    torch.testing.assert_close(block.attend(tokens), theirs(tokens, tokens, tokens)[0])
