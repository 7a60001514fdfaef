"""The device that networks run on: choose it, name it, seed it, and pick its precision."""

import platform
import random

import numpy as np
import torch
from torch import nn

from fer_utils.errors import TrainingError


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers (torch: on every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def select_device(name: str = "auto") -> torch.device:
    """Take the GPU for "auto" when there is one; "cuda" without a GPU raises TrainingError, it never falls back.

    On a GPU fp32 then means fp32: convolutions may not round to TF32. What may be coarser is trained in bf16 anyway.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise TrainingError(f'device is {name!r}; it must be "auto", "cpu" or "cuda"')
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError('device "cuda" was asked for, but torch finds no GPU here; use device "auto" or "cpu"')
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    """The device as tables name it: the GPU's model, or the kind of processor with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def choose_precision(model: nn.Module, device: torch.device) -> str:
    """Return "bf16" where the device calculates in it natively, else "fp32".

    On a CPU, networks with depthwise convolutions stay in fp32: these are slow in bf16 (EfficientNet-B0 took twice as
    long). Nothing is timed, so the same machine always trains in the same way.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    depthwise = any(layer.groups == layer.in_channels > 1 for layer in convolutions)
    return "bf16" if native and not depthwise else "fp32"
