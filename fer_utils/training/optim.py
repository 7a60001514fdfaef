"""The optimizer, and the learning rate at every step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from fer_utils.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum, or AdamW.

    Without config.decay_all, weight decay applies only to the weights of convolutions and dense layers, which have two
    or more dimensions; decaying biases and norms brings nothing (He et al. 2019, "Bag of tricks", arXiv:1812.01187).

    Each group of parameters has an "lr_factor" from config.lr_factors. Frozen parameters are in no group. ValueError if
    config.lr_factors names an unknown module.
    """
    unknown = {name for name, _ in config.lr_factors} - {name for name, _ in model.named_modules()}
    if unknown:
        raise ValueError(f"TrainConfig.lr_factors names {min(unknown)!r}; there is no such module in this network")
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = lr_factor(name, config)
        if parameter.requires_grad and factor:
            decay = config.weight_decay if parameter.dim() > 1 or config.decay_all else 0.0
            members.setdefault((factor, decay), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (factor, decay), parameters in members.items()
    ]
    if config.optimizer == "adamw":
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        # capturable: the training step may become part of a CUDA graph.
        return torch.optim.AdamW(groups, lr=config.lr, fused=True, capturable=on_gpu)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def lr_factor(name: str, config: TrainConfig) -> float:
    """Return the factor on the learning rate of a module or parameter, see TrainConfig.lr_factors."""
    fitting = [(len(module), factor) for module, factor in config.lr_factors if f"{name}.".startswith(f"{module}.")]
    return max(fitting)[1] if fitting else 1.0


def learning_rate(step: int, total_steps: int, val_losses: Sequence[float], config: TrainConfig) -> float:
    """Return the learning rate of a step, counted from 0.

    It depends only on these arguments, so a resumed run continues the same schedule. val_losses: of the epochs so far;
    only "plateau" uses them.
    """
    if config.schedule == "plateau":
        return config.lr * config.plateau_factor ** count_plateaus(val_losses, config.plateau_patience)
    warmup_steps = config.warmup * total_steps if config.schedule == "one_cycle" else 0
    if step < warmup_steps:
        return config.lr * (config.warmup_from + (1 - config.warmup_from) * step / warmup_steps)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * progress)) / 2)


def ema_weight(step: int, config: TrainConfig) -> float:
    """Return the weight of the newest model in the moving average after a step, counted from 0: 1 minus the decay.

    The decay grows from 0.1 to config.ema, so that the average soon forgets the random start.
    """
    return 1 - min(config.ema, (1 + step) / (10 + step))


def count_plateaus(val_losses: Sequence[float], patience: int) -> int:
    """Count how often the loss has not improved for more than `patience` epochs; each time the count starts anew.

    As in torch's ReduceLROnPlateau, an improvement must exceed 0.01 %.
    """
    best, waited, plateaus = math.inf, 0, 0
    for loss in val_losses:
        if loss < best * (1 - 1e-4):
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            plateaus, waited = plateaus + 1, 0
    return plateaus
