"""Costs of networks: counted by hand, measured with known answers, and found again from what was published."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fer_utils import cost
from fer_utils.models import build_model, make_spec
from fer_utils.models.efficientnet import EfficientNetB0
from fer_utils.predict import Predictions


def test_one_and_two_efficientnets_cost_what_was_published():
    one = cost.count_gmacs(build_model("efficientnet_b0"))
    assert one == pytest.approx(0.023210688, rel=1e-9)
    assert 2 * one == pytest.approx(0.046421376, rel=1e-9)


def test_an_inverted_bottleneck_by_hand():
    wide, narrow = 24 * 24, 12 * 12  # positions before and after the stride of 2
    by_hand = {
        "conv": 16 * 96 * wide + 9 * 96 * narrow + 2 * 96 * 4 + 96 * 24 * narrow,
        "batch_norm": 2 * (96 * wide + 96 * narrow + 24 * narrow),
        "adaptive_avg_pool2d": 96 * narrow,
    }
    block = EfficientNetB0().backbone[2][0].train()
    assert cost.count_operations(block, (1, 16, 24, 24)) == by_hand
    assert block.training  # left as it was found


def test_counting_says_nothing(capsys, caplog):
    cost.count_gmacs(build_model("efficientnet_b0"))
    assert capsys.readouterr() == ("", "") and not caplog.records


def test_the_originals_efficiency_and_its_slip():
    assert round(cost.efficiency(0.6874, 0.046421376), 2) == 14.81
    assert round(cost.efficiency(0.6666, 0.046), 2) == 14.49  # one model, divided by the cost of two
    assert round(cost.efficiency(0.6666, 0.023210688), 1) == 28.7
    with pytest.raises(ValueError, match="cannot be 0"):
        cost.efficiency(0.5, 0)


class Sleeper(nn.Module):
    """Takes the given seconds, one after the other."""

    def __init__(self, seconds):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds, self.seen = iter(seconds), []

    def forward(self, images):
        assert not self.training
        self.seen.append(len(images))
        Sleeper.now += next(self.seconds)
        return images


def test_latency_is_the_median_after_the_warm_up(monkeypatch):
    Sleeper.now = 0.0
    monkeypatch.setattr(cost.time, "perf_counter", lambda: Sleeper.now)
    model = Sleeper([9, 9, 0.001, 5, 0.003]).train()
    assert cost.measure_latency(model, batch_size=4, repeats=3, warm_up=2) == pytest.approx(3)
    assert model.seen == [4] * 5 and model.training


def chain(*channels, inplace=False):
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU(inplace=inplace))])


def bytes_of(model):
    return 4 * sum(p.numel() for p in model.parameters())


PLANE = 4 * 2 * 48 * 48  # bytes of one channel for two images


def test_memory_counts_what_exists_at_once():
    model = chain(1, 8, 8, 8, inplace=True)  # in and out of one layer: 1 + 8, then 8 + 8, besides the images
    assert cost.measure_memory(model, 2) == bytes_of(model) + PLANE * (1 + 8 + 8)
    deeper = chain(1, 8, 8, 8, 8, 8, 8, inplace=True)  # longer, but no more of it at the same time
    assert cost.measure_memory(deeper, 2) - bytes_of(deeper) == cost.measure_memory(model, 2) - bytes_of(model)


def test_memory_counts_copies_but_no_views():
    assert cost.measure_memory(chain(1, 8), 2) == bytes_of(chain(1, 8)) + PLANE * (1 + 8 + 8)
    flat = nn.Sequential(chain(1, 8, inplace=True), nn.Flatten())
    assert cost.measure_memory(flat, 2) == bytes_of(flat) + PLANE * (1 + 8)


def test_the_cost_of_a_published_model_is_that_of_its_spec_and_views():
    spec = make_spec("resnet18", attention="gates", stem="middle")
    found = cost.cost_of(Predictions(np.zeros((1, 1, 7)), np.zeros((1, 1, 7)), (0,), "", spec, "shifts"))
    again = build_model(spec)
    assert (found["architecture"], found["views"]) == ("resnet18, attention gates, stem middle", 10)
    assert found["gmacs"] == pytest.approx(10 * cost.count_gmacs(again)) and found["params"] == cost.count_params(again)
