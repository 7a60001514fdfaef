"""Choose the device and its precision, name the device, and set the seed."""

import platform
import random

import numpy as np
import torch
from torch import nn

from fer_utils.errors import TrainingError


def set_seed(seed: int) -> None:
    """Seed the random numbers of Python, NumPy and torch (on every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def select_device(name: str = "auto") -> torch.device:
    """Select the device: "cpu", "cuda", or "auto", which takes the GPU if there is one.

    "cuda" without a GPU raises TrainingError; there is no fallback to the CPU. On a GPU, TF32 is switched off: fp32 has
    full precision, and mixed precision uses bf16.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise TrainingError(f'device is {name!r}; it must be "auto", "cpu" or "cuda"')
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError('device "cuda" was requested, but torch finds no GPU here; use device "auto" or "cpu"')
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    """Return the name of the device for tables: the model of the GPU, or the kind of CPU and its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def choose_precision(model: nn.Module, device: torch.device) -> str:
    """Return "bf16" if the device supports it natively, otherwise "fp32".

    On a CPU, networks with depthwise convolutions use fp32, because these convolutions are slow in bf16
    (EfficientNet-B0 took twice as long). The choice needs no timing, so it is always the same on the same machine.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    depthwise = any(layer.groups == layer.in_channels > 1 for layer in convolutions)
    return "bf16" if native and not depthwise else "fp32"
