"""How weights change: the optimizer, and its learning rate at every step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from fer_utils.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; weight decay leaves biases and norms alone unless config.decay_all.

    Those have one dimension, weights have two or more. Decay keeps weights small, but a norm that follows undoes their
    size, and biases are few: there is nothing to gain (He et al. 2019, "Bag of tricks", arXiv:1812.01187).

    Each group of parameters has its "lr_factor", as config.lr_factors says; what is frozen is in none. ValueError when
    a name there is none of a module.
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
        return torch.optim.AdamW(groups, lr=config.lr, fused=True, capturable=on_gpu)  # the step may be captured
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def lr_factor(name: str, config: TrainConfig) -> float:
    """By what the learning rate of a module or parameter is multiplied: see TrainConfig.lr_factors."""
    fitting = [(len(module), factor) for module, factor in config.lr_factors if f"{name}.".startswith(f"{module}.")]
    return max(fitting)[1] if fitting else 1.0


def learning_rate(step: int, total_steps: int, val_losses: Sequence[float], config: TrainConfig) -> float:
    """Learning rate of one step (0-based), a function of nothing else: so it resumes like it began.

    val_losses: of the epochs so far; only "plateau" looks at them.
    """
    if config.schedule == "plateau":
        return config.lr * config.plateau_factor ** count_plateaus(val_losses, config.plateau_patience)
    warmup_steps = config.warmup * total_steps if config.schedule == "one_cycle" else 0
    if step < warmup_steps:
        return config.lr * (config.warmup_from + (1 - config.warmup_from) * step / warmup_steps)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * progress)) / 2)


def ema_weight(step: int, config: TrainConfig) -> float:
    """By what share of the way the averaged weights follow those of the model after step 0, 1, ...

    The decay grows from 0.1 to config.ema, so that the average soon forgets the random start.
    """
    return 1 - min(config.ema, (1 + step) / (10 + step))


def count_plateaus(val_losses: Sequence[float], patience: int) -> int:
    """How often the loss stayed for more than `patience` epochs at or above its best; counting restarts each time.

    As torch's ReduceLROnPlateau counts: an improvement is one of more than 0.01 %.
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
