"""Where a network looks: class activation maps of whole batches, the regions of a face, and whether a map is true.

A map is (N,h,w) as its layer has it, or (N,48,48) once enlarged. It is never below zero. Within one map large means
important; how strong two maps are can be compared only if they come from the same network and layer.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from fer_utils.augment import to_float
from fer_utils.data.constants import IMAGE_SIZE
from fer_utils.models.baseline import BaselineCNN
from fer_utils.models.efficientnet import EfficientNetB0
from fer_utils.models.resnet import ResNet18

Key = TypeVar("Key")  # what maps are called: a text, or a pair of texts

# How activations and gradients of a layer, both (N,C,h,w), become maps (N,h,w).
Method = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Where each network has feature maps worth looking at, from its input to its output: the name used here and torch's.
LAYERS = {
    BaselineCNN: {"block1": "features.1", "block2": "features.4", "block3": "features.7"},  # before their pooling
    ResNet18: {f"layer{i}": f"backbone.layer{i}" for i in range(1, 5)},
    EfficientNetB0: {f"stage{i}": f"backbone.{i}" for i in range(1, 9)},
}


# --- Maps -------------------------------------------------------------------------------------------------------------


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The part of a network whose output a map is made from; ValueError lists the names there are."""
    names = LAYERS.get(type(model), {})
    if name not in names:
        known = f"choose one of {', '.join(names)}" if names else "cam.LAYERS knows none of its layers"
        raise ValueError(f"there is no layer {name!r} in {type(model).__name__}; {known}")
    return model.get_submodule(names[name])


def activations_and_gradients(
    model: nn.Module, images: torch.Tensor, layers: Sequence[str], targets: torch.Tensor
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """What layers answer to images, and how the logits of the targets change with it: one forward, one backward pass.

    images: (N,1,48,48) float; targets: (N,) classes; the model is in evaluation mode. Returns logits (N,7), and for
    each layer activations and gradients, both (N,C,h,w). Leaves neither hooks nor gradients in the model.
    """
    modules = {name: find_layer(model, name) for name in layers}
    kept = {}
    handles = [module.register_forward_hook(partial(_keep, kept, name)) for name, module in modules.items()]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    # In evaluation mode images do not influence each other: the gradient of the sum holds each image's own.
    score = logits.gather(1, targets[:, None]).sum()
    gradients = torch.autograd.grad(score, [kept[name] for name in layers])
    return logits.detach(), {name: (kept[name].detach(), g) for name, g in zip(layers, gradients, strict=True)}


def _keep(kept: dict[str, torch.Tensor], name: str, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    kept[name] = output


def grad_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): (N,C,h,w) twice -> maps (N,h,w).

    Every channel weighs as much as its gradient is on average over all positions; what speaks against the class, and
    so is negative in the sum, is cut off.
    """
    weights = gradients.mean((2, 3), keepdim=True)
    return (weights * activations).sum(1).relu()


def layer_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Layer-CAM (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943): (N,C,h,w) twice -> maps (N,h,w).

    Every place of every channel weighs as much as its own gradient, if that is positive.
    """
    return (gradients.relu() * activations).sum(1).relu()


METHODS = {"Grad-CAM": grad_cam, "Layer-CAM": layer_cam}


def from_package(kind: type, model: nn.Module) -> Method:
    """A class of the grad-cam package, such as EigenCAM, as a function like grad_cam: it makes the map and no more.

    Called directly, the package would also stretch every map to 0..1, and then no two maps can be compared.
    """
    package = kind(model, target_layers=[])

    def method(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        arrays = (values.cpu().numpy() for values in (activations, gradients))
        return torch.from_numpy(package.get_cam_image(None, None, None, *arrays, False)).relu()

    return method


def heat_maps(
    model: nn.Module,
    images: np.ndarray,
    layers: Sequence[str],
    targets: np.ndarray,
    methods: Mapping[str, Method] = METHODS,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """Logits (N,7) and maps (N,h,w) of images (N,48,48) uint8, float32; a map's key is its method and its layer.

    targets: (N,), the class whose logit each map explains. methods: name -> what makes a map of activations and
    gradients, as grad_cam does. ValueError for a layer that does not exist.
    """
    training = model.training
    model.eval()
    logits, maps = [], {(method, layer): [] for method in methods for layer in layers}
    for start in range(0, len(images), batch_size):
        chunk = slice(start, start + batch_size)
        shown = to_float(torch.as_tensor(images[chunk]).to(device)).contiguous(memory_format=torch.channels_last)
        answers, found = activations_and_gradients(model, shown, layers, torch.as_tensor(targets[chunk]).to(device))
        logits.append(answers.cpu().numpy())
        for (method, layer), parts in maps.items():
            parts.append(methods[method](*found[layer]).cpu().numpy())
    model.train(training)
    return np.concatenate(logits), {key: np.concatenate(parts) for key, parts in maps.items()}


def upsample(maps: np.ndarray) -> np.ndarray:
    """Maps (N,h,w) -> (N,48,48), linear in between. It looks finer than it is: no detail is added."""
    return F.interpolate(
        torch.as_tensor(maps)[:, None], (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False
    )[:, 0].numpy()


def density(maps: np.ndarray) -> np.ndarray:
    """Maps (N,H,W) divided by their mean: 1 is what every pixel would have if the energy were spread evenly.

    nan for a map that is zero everywhere.
    """
    means = maps.mean((1, 2), keepdims=True)
    return maps / np.where(means > 0, means, np.nan)


def scale_of(panels: Sequence[np.ndarray]) -> tuple[float, float]:
    """Ends of one scale of colors for several maps: 0, and the whole number that 99 % of their pixels are below."""
    pixels = np.concatenate([np.ravel(panel) for panel in panels])
    return 0.0, float(np.ceil(np.nanquantile(pixels, 0.99)))


# --- Is a map true? ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def deletion_insertion(
    model: nn.Module,
    images: np.ndarray,
    maps: Mapping[Key, np.ndarray],
    targets: np.ndarray,
    steps: int = 10,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[Key, dict[str, np.ndarray]]:
    """Probabilities of the targets while faces are blurred, what a map calls important first: two curves per map.

    After Petsiuk et al. 2018 (arXiv:1806.07421). "deletion": from the face to its blurred copy, and a map that is true
    makes the probability fall fast. "insertion": from the blurred copy to the face, and it should rise fast.

    images: (N,48,48) uint8. maps: one or several maps (N,48,48) of these images, by name, of which only the order
    within each counts; equal pixels go in random order. The model is in evaluation mode. Returns for each name the
    curves "deletion" and "insertion", both (N,steps+1).
    """
    sharp = to_float(torch.as_tensor(images).to(device))
    blurred = gaussian_blur(sharp, kernel_size=[37, 37], sigma=[6.0, 6.0])
    columns = torch.as_tensor(targets).to(device)[:, None]

    def probability(faces: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(part) for part in faces.split(256)]).softmax(1).gather(1, columns)

    face, blur = probability(sharp), probability(blurred)  # the ends of all curves
    curves = {}
    for name, values in maps.items():
        place = torch.from_numpy(pixel_order(values, seed)).to(device).view_as(sharp)
        brightest = [place < step * IMAGE_SIZE**2 / steps for step in range(1, steps)]
        deleted = [probability(torch.where(first, blurred, sharp)) for first in brightest]
        inserted = [probability(torch.where(first, sharp, blurred)) for first in brightest]
        pair = {"deletion": [face, *deleted, blur], "insertion": [blur, *inserted, face]}
        curves[name] = {way: torch.cat(curve, 1).cpu().numpy() for way, curve in pair.items()}
    return curves


def area_under(curve: np.ndarray) -> np.ndarray:
    """The area (N,) under curves (N,steps+1) over an axis from 0 to 1, by the trapezoid rule."""
    return (curve[:, 1:] + curve[:, :-1]).mean(1) / 2


def fade_score(curves: Mapping[str, np.ndarray]) -> np.ndarray:
    """Insertion minus deletion (N,), from -1 to 1: the areas under the two curves of a map. Large for a true map."""
    return area_under(curves["insertion"]) - area_under(curves["deletion"])


def center_blob(width: float = 0.25) -> np.ndarray:
    """A map (48,48) that knows nothing: a Gaussian hill in the middle, `width` its standard deviation in widths."""
    y, x = (np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5) / IMAGE_SIZE - 0.5
    return np.exp(-(x**2 + y**2) / (2 * width**2)).astype(np.float32)


def pixel_order(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """The place (N,H*W) of every pixel, 0 for the largest of its map (N,H,W); equal ones in random order."""
    flat = maps.reshape(len(maps), -1)
    chance = np.random.default_rng(seed).random(flat.shape)
    order = np.lexsort((chance, -flat))
    return order.argsort(1)


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's correlation (N,) of the pixels of each map (N,H,W) with those of another; nan for a constant map."""
    a, b = (rankdata(m.reshape(len(m), -1), axis=1) for m in (maps, others))
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
    lengths = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return (a * b).sum(1) / np.where(lengths > 0, lengths, np.nan)
