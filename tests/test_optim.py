"""Optimizers and learning rates: who is decayed, and by how much; schedules against torch's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fer_utils.training import TrainConfig
from fer_utils.training.optim import build_optimizer, count_plateaus, learning_rate

OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def small() -> nn.Sequential:
    """A convolution, a norm and a dense layer: two weights, and four parameters of one dimension."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 7))


WEIGHTS = ("0.weight", "3.weight")


def shrinkage(model: nn.Module, config: TrainConfig) -> dict[str, float]:
    """By which factor one step with a gradient of zero changes each parameter, all of which are set to 1."""
    optimizer = build_optimizer(model, config)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name: float(parameter.detach().mean()) for name, parameter in model.named_parameters()}


# ---- The optimizer ----


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_in_one_group(name, decay_all):
    model = small()
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, decay_all=decay_all))
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert type(optimizer) is OPTIMIZERS[name]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_acts_on_weights_alone_unless_it_is_for_all(name):
    config = TrainConfig(optimizer=name, lr=0.1, momentum=0.0, weight_decay=0.2)
    factors = shrinkage(small(), config)
    assert {name for name, factor in factors.items() if factor != 1} == set(WEIGHTS)
    assert [factors[name] for name in WEIGHTS] == pytest.approx([1 - 0.1 * 0.2] * 2)
    assert list(shrinkage(small(), replace(config, decay_all=True)).values()) == pytest.approx([1 - 0.1 * 0.2] * 6)


def test_adamw_decays_apart_from_the_gradient():
    """Its paper's point: decay does not pass through the division by the gradient's size, as in Adam with L2."""
    config = TrainConfig(optimizer="adamw", lr=0.01, weight_decay=0.3)
    ours, adam = small(), small()
    before = ours[3].weight.detach().clone()
    for model, optimizer in [(ours, build_optimizer(ours, config)), (adam, torch.optim.Adam(adam.parameters(), 0.01))]:
        model(torch.linspace(-1, 1, 32).view(2, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    assert torch.allclose(ours[3].weight, adam[3].weight - 0.01 * 0.3 * before, atol=1e-6)
    assert torch.allclose(ours[3].bias, adam[3].bias, atol=1e-6)


def test_sgd_has_nesterov_momentum():
    model = small()
    optimizer = build_optimizer(model, TrainConfig(lr=0.1, momentum=0.5, weight_decay=0.0))
    bias = model[3].bias
    nn.init.zeros_(bias)
    for _ in range(2):
        bias.grad = torch.ones_like(bias)
        optimizer.step()
    velocity = (1, 1 + 0.5)  # and Nesterov looks one step ahead along it
    assert torch.allclose(bias, torch.tensor(-0.1 * sum(1 + 0.5 * v for v in velocity)).expand(7))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_are_left_out(name):
    model = small()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, decay_all=True))
    assert [len(group["params"]) for group in optimizer.param_groups] == [2]


# ---- The learning rate ----


def test_one_cycle_rises_in_a_straight_line_and_falls_along_a_cosine():
    config = TrainConfig(lr=0.4, schedule="one_cycle", warmup=0.2, warmup_from=0.1, final=0.05)
    rates = [learning_rate(step, 100, [], config) for step in range(101)]
    assert rates[0] == pytest.approx(0.04) and rates[20] == pytest.approx(0.4) and rates[100] == pytest.approx(0.02)
    assert np.diff(rates[:21]) == pytest.approx((0.4 - 0.04) / 20)
    assert rates[60] == pytest.approx((0.4 + 0.02) / 2)  # half-way down
    assert (np.diff(rates[20:]) < 0).all()


def test_one_cycle_without_warmup_starts_at_its_peak():
    config = TrainConfig(lr=0.4, warmup=0.0)
    assert learning_rate(0, 10, [], config) == 0.4
    assert learning_rate(0, 10, [], config) > learning_rate(1, 10, [], config)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torchs(final):
    config = TrainConfig(lr=0.3, schedule="cosine", final=final)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.3 * final)
    for step in range(50):
        assert learning_rate(step, 50, [], config) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


LOSSES = {
    "falls": [3.0, 2.0, 1.0, 0.5, 0.2, 0.1],
    "rises": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    "all equal": [1.0] * 9,
    "equal to the best": [2.0, 1.0, 1.5, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5],
    "better by less than 0.01 %": [1.0, 0.99995, 0.9999, 0.99985, 0.9998, 0.99975],
    "better by more than 0.01 %": [1.0, 0.9998, 0.9996, 0.9994, 0.9992],
    "back and forth": [1.0, 1.2, 0.9, 1.1, 1.3, 1.2, 0.8, 0.9, 0.9, 0.9, 0.7],
    "noise": list(np.random.default_rng(0).random(40)),
}


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
def test_plateau_is_torchs(losses, patience):
    config = TrainConfig(lr=1.0, schedule="plateau", plateau_factor=0.5, plateau_patience=patience)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, eps=0)
    assert learning_rate(0, 100, [], config) == 1.0
    for epoch, loss in enumerate(losses, 1):
        theirs.step(loss)
        assert learning_rate(0, 100, losses[:epoch], config) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateaus_counted_by_hand():
    assert count_plateaus([1.0, 1.0, 1.0], patience=2) == 0  # two epochs without progress are borne
    assert count_plateaus([1.0, 1.0, 1.0, 1.0], patience=2) == 1
    assert count_plateaus([1.0] * 7, patience=2) == 2


def test_only_plateau_looks_at_the_losses():
    for schedule in ("one_cycle", "cosine"):
        config = TrainConfig(schedule=schedule)
        assert learning_rate(40, 100, [1.0] * 20, config) == learning_rate(40, 100, [], config)
