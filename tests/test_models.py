"""Networks: shapes, sizes, and costs worked out by hand."""

import pytest
import torch

from fer_utils.flops import count_gmacs, count_params
from fer_utils.models import ARCHITECTURES, build_model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_maps_faces_to_seven_logits(name):
    assert build_model(name).eval()(torch.zeros(3, 1, 48, 48)).shape == (3, 7)


def test_unknown_network_lists_the_known_ones():
    with pytest.raises(ValueError, match="baseline_cnn"):
        build_model("basline_cnn")


def test_baseline_size_and_cost_by_hand():
    convolutions = [(1 * 9, 32, 48), (32 * 9, 64, 24), (64 * 9, 128, 12)]  # weights per output, channels, width
    params = sum((w + 1) * c for w, c, _ in convolutions) + (128 * 36 + 1) * 512 + (512 + 1) * 7
    macs = sum(w * c * width**2 for w, c, width in convolutions) + 128 * 36 * 512 + 512 * 7
    model = build_model("baseline_cnn").train()
    assert count_params(model) == params
    assert count_gmacs(model) == pytest.approx(macs / 1e9, rel=1e-6)
    assert model.training  # left as it was found
