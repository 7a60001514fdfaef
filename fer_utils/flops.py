"""Size and cost of a network: parameters, and multiply-adds for one 48x48 image."""

import warnings

import torch
from torch import nn

with warnings.catch_warnings():  # fvcore still decorates with torch.jit.script, which newer torch calls outdated
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*deprecated", category=FutureWarning)
    from fvcore.nn import FlopCountAnalysis


def count_params(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_gmacs(model: nn.Module) -> float:
    """Billions of multiply-adds (GMACs) to classify one image of 1x48x48.

    Counted by fvcore, whose "flop" is one fused multiply-add; papers often print the same number as "GFLOPs".
    """
    training = model.training
    device = next(model.parameters()).device
    analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, 1, 48, 48, device=device))
    analysis.unsupported_ops_warnings(False)
    total = analysis.total()
    model.train(training)
    return total / 1e9
