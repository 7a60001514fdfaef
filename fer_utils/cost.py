"""Measure the cost of a network: parameters, multiply-adds, memory and time for 48x48 images."""

import statistics
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fer_utils.models.build import build_model, describe
from fer_utils.predict import VIEWS, Predictions

with warnings.catch_warnings():  # fvcore still uses torch.jit.script, which is deprecated
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*deprecated", category=FutureWarning)
    from fvcore.nn import FlopCountAnalysis


def count_params(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_gmacs(model: nn.Module, shape: tuple[int, int, int] = (1, 48, 48)) -> float:
    """Count the billions of multiply-adds (GMACs) for one image of this shape: channels, height, width.

    fvcore does the counting; its "flop" is one fused multiply-add. Papers often call the same number "GFLOPs".
    """
    return count_operations(model, (1, *shape)).total() / 1e9


def count_operations(model: nn.Module, shape: tuple[int, ...] = (1, 1, 48, 48)) -> Counter:
    """Count multiply-adds for an input of this shape by kind of operation ("conv", "linear", ...), with fvcore.

    fvcore counts the multiply-adds of convolutions and dense layers, two operations per value for batch norm, and one
    per value for average pooling. Activations and additions count 0.
    """
    training = model.training
    device = next(model.parameters()).device
    analysis = FlopCountAnalysis(model.eval(), torch.zeros(shape, device=device))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    operations = analysis.by_operator()
    model.train(training)
    return operations


def efficiency(accuracy: float, gmacs: float) -> float:
    """Compute accuracy in percent / GMACs / 100, the metric of the student project behind notebook 07; high is good.

    accuracy: 0 to 1. ValueError unless gmacs is above 0.
    """
    if not gmacs > 0:
        raise ValueError(f"efficiency divides by the GMACs of a network, which cannot be {gmacs!r}")
    return 100 * accuracy / gmacs / 100


def cost_of(predictions: Predictions) -> dict[str, object]:
    """Compute the cost of one prediction of a published model: network, architecture, views, params, gmacs.

    The network has random weights. gmacs includes all views of a face, so two views cost twice as much as one.
    """
    model = build_model(predictions.spec).eval()
    views = len(VIEWS[predictions.views])
    size = {"params": count_params(model), "gmacs": views * count_gmacs(model)}
    return {"network": model, "architecture": describe(predictions.spec), "views": views} | size


@torch.inference_mode()
def measure_latency(model: nn.Module, batch_size: int, repeats: int = 9, warm_up: int = 2) -> float:
    """Measure the latency of a batch: median milliseconds of a forward pass in evaluation mode, on the model's device.

    The first warm_up passes are left out, because they allocate memory and choose algorithms.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    images = torch.zeros(batch_size, 1, 48, 48, device=device)

    def forward() -> None:
        model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # a call only queues work on the GPU; this waits for the result

    milliseconds = median_ms(forward, repeats, warm_up)
    model.train(training)
    return milliseconds


def median_ms(call: Callable[[], object], repeats: int, warm_up: int) -> float:
    """Measure the median milliseconds of a call; the first warm_up calls are left out."""
    seconds = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[warm_up:])


@torch.no_grad()
def measure_memory(model: nn.Module, batch_size: int) -> int:
    """Measure the peak memory of a forward pass in evaluation mode: the most bytes of tensors that exist at once.

    Weights, images and intermediate results count; temporary memory inside an operation does not.
    """
    training, device = model.training, next(model.parameters()).device
    images = torch.zeros(batch_size, 1, 48, 48, device=device)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    with _LiveTensors() as live:
        model.eval()(images)
    model.train(training)
    return weights + images.numel() * images.element_size() + live.peak


class _LiveTensors(TorchDispatchMode):
    """Adds up the bytes of storages that operations create, and subtracts each when its last tensor is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0  # bytes
        self._storages = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage(), before)
        return result

    def _watch(self, storage, before) -> None:
        if storage in before or storage in self._storages:  # a view or an in-place operation: no new memory
            return
        self._storages.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size
