"""Where does a network look? Class activation maps of whole batches, tests of their faithfulness, and control heads.

Maps are (N,h,w), the size of the layer, or (N,48,48) after upsampling, and never negative. Within a map, large values
mark important pixels. The strengths of two maps are comparable only for the same network and layer.
"""

import copy
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
from fer_utils.models.small_resnet import SmallResNet

Key = TypeVar("Key")  # what maps are called: a text, or a pair of texts

# A method turns activations and gradients of a layer, both (N,C,h,w), into maps (N,h,w).
Method = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# The layers of each network whose maps are useful, from input to output: name used here -> name of the module.
LAYERS = {
    BaselineCNN: {"block1": "features.1", "block2": "features.4", "block3": "features.7"},  # before their pooling
    ResNet18: {f"layer{i}": f"backbone.layer{i}" for i in range(1, 5)},
    EfficientNetB0: {f"stage{i}": f"backbone.{i}" for i in range(1, 9)},
    SmallResNet: {f"stage{i}": f"stages.stage{i}" for i in range(1, 5)},
}
# The dense layers at the end.
HEADS = {BaselineCNN: "classifier", ResNet18: "head", EfficientNetB0: "head", SmallResNet: "head"}


# --- Maps -------------------------------------------------------------------------------------------------------------


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module of a network with this name in LAYERS; ValueError lists the names."""
    names = LAYERS.get(type(model), {})
    if name not in names:
        advice = f"choose one of {', '.join(names)}" if names else "cam.LAYERS lists no layers of this network"
        raise ValueError(f"there is no layer {name!r} in {type(model).__name__}; {advice}")
    return model.get_submodule(names[name])


def activations_and_gradients(
    model: nn.Module, images: torch.Tensor, layers: Sequence[str], targets: torch.Tensor
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Compute the activations of layers and the gradients of the target logits, in one forward and one backward pass.

    images: (N,1,48,48) float. targets: (N,) classes. The model must be in evaluation mode. Returns logits (N,7), and
    for each layer activations and gradients, both (N,C,h,w). No hooks or gradients stay in the model.
    """
    logits, outputs = _forward(model, images, layers)
    # In evaluation mode images do not influence each other, so the gradient of the sum is the gradient of each image.
    score = logits.gather(1, targets[:, None]).sum()  # (N,1) -> ()
    gradients = torch.autograd.grad(score, [outputs[name] for name in layers])
    return logits.detach(), {name: (outputs[name].detach(), g) for name, g in zip(layers, gradients, strict=True)}


def _forward(
    model: nn.Module, images: torch.Tensor, layers: Sequence[str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the output of a network and those of some of its layers, name -> (N,C,h,w); no hooks stay."""
    modules = {name: find_layer(model, name) for name in layers}
    outputs = {}
    handles = [module.register_forward_hook(partial(_store, outputs, name)) for name, module in modules.items()]
    try:
        return model(images), outputs
    finally:
        for handle in handles:
            handle.remove()


def _store(outputs: dict[str, torch.Tensor], name: str, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    """Store the output of a layer; a forward hook."""
    outputs[name] = output


def grad_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Compute Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): (N,C,h,w) twice -> maps (N,h,w).

    The weight of a channel is its gradient, averaged over positions. Negative values, which are evidence against the
    class, become 0.
    """
    weights = gradients.mean((2, 3), keepdim=True)  # (N,C,1,1)
    return (weights * activations).sum(1).relu()  # (N,h,w)


def layer_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Compute Layer-CAM (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943): (N,C,h,w) twice -> maps (N,h,w).

    Each position of each channel has its own weight: its gradient if it is positive, otherwise 0.
    """
    return (gradients.relu() * activations).sum(1).relu()  # (N,h,w)


METHODS = {"Grad-CAM": grad_cam, "Layer-CAM": layer_cam}


def from_package(kind: type, model: nn.Module) -> Method:
    """Turn a class of the grad-cam package, such as EigenCAM, into a method like grad_cam.

    The package itself would also rescale every map to 0-1, so that maps could not be compared.
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
    """Compute logits (N,7) and maps (N,h,w), both float32, of images (N,48,48) uint8; maps have keys (method, layer).

    targets: (N,), the class whose logit each map explains. methods: name -> function like grad_cam. ValueError for an
    unknown layer.
    """
    training = model.training
    model.eval()
    logits, maps = [], {(method, layer): [] for method in methods for layer in layers}
    for start in range(0, len(images), batch_size):
        chunk = slice(start, start + batch_size)
        inputs, classes = _to_device(images[chunk], targets[chunk], device)
        chunk_logits, features = activations_and_gradients(model, inputs, layers, classes)
        logits.append(chunk_logits.cpu().numpy())
        for (method, layer), parts in maps.items():
            parts.append(methods[method](*features[layer]).cpu().numpy())
    model.train(training)
    return np.concatenate(logits), {key: np.concatenate(parts) for key, parts in maps.items()}


def _to_device(
    images: np.ndarray, targets: np.ndarray, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn images (N,48,48) uint8 into inputs of a network (N,1,48,48) on the device, and targets (N,) with them."""
    inputs = to_float(torch.as_tensor(images).to(device)).contiguous(memory_format=torch.channels_last)
    return inputs, torch.as_tensor(targets).to(device)


def upsample(maps: np.ndarray) -> np.ndarray:
    """Enlarge maps (N,h,w) to (N,48,48) by bilinear interpolation, which makes them smoother but adds no detail."""
    return F.interpolate(
        torch.as_tensor(maps)[:, None], (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False
    )[:, 0].numpy()


def density(maps: np.ndarray) -> np.ndarray:
    """Divide maps (N,H,W) by their means: a uniform map is 1 everywhere; a map of zeros becomes nan."""
    means = maps.mean((1, 2), keepdims=True)  # (N,1,1)
    return maps / np.where(means > 0, means, np.nan)


def scale_of(panels: Sequence[np.ndarray]) -> tuple[float, float]:
    """Choose a common color scale for several maps: from 0 to the 99 % quantile of their pixels, rounded up."""
    pixels = np.concatenate([np.ravel(panel) for panel in panels])
    return 0.0, float(np.ceil(np.nanquantile(pixels, 0.99)))


# --- Faithfulness -----------------------------------------------------------------------------------------------------


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
    """Compute the deletion and insertion curves of maps (Petsiuk et al. 2018, arXiv:1806.07421).

    A curve is the probability of the target while pixels change in the order of the map, the most important first.
    "deletion" goes from the face to its blurred copy, and with a faithful map the probability falls fast. "insertion"
    goes from the blurred copy to the face, and the probability should rise fast.

    images: (N,48,48) uint8. maps: name -> map (N,48,48); only the order of the pixels within each map matters, and ties
    are broken at random. targets: (N,). The model must be in evaluation mode. Returns for each name the curves
    "deletion" and "insertion", both (N,steps+1).
    """
    sharp = to_float(torch.as_tensor(images).to(device))  # (N,1,48,48)
    blurred = gaussian_blur(sharp, kernel_size=[37, 37], sigma=[6.0, 6.0])
    columns = torch.as_tensor(targets).to(device)[:, None]  # (N,1)

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
    """Compute the areas (N,) under curves (N,steps+1) over an axis from 0 to 1, by the trapezoid rule."""
    return (curve[:, 1:] + curve[:, :-1]).mean(1) / 2


def fade_score(curves: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compute insertion minus deletion (N,), -1 to 1, from the areas under their curves; high for a faithful map."""
    return area_under(curves["insertion"]) - area_under(curves["deletion"])


def center_blob(width: float = 0.25) -> np.ndarray:
    """Make a map (48,48) that ignores the image: a centered Gaussian; width: its standard deviation in image widths."""
    y, x = (np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5) / IMAGE_SIZE - 0.5
    return np.exp(-(x**2 + y**2) / (2 * width**2)).astype(np.float32)


def pixel_order(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """Rank the pixels of each map (N,H,W) as (N,H*W), 0 for the largest value; ties are broken at random."""
    flat = maps.reshape(len(maps), -1)
    chance = np.random.default_rng(seed).random(flat.shape)
    order = np.lexsort((chance, -flat))
    return order.argsort(1)


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute Spearman's correlation (N,) between the pixels of two maps (N,H,W); nan for a constant map."""
    a, b = (rankdata(m.reshape(len(m), -1), axis=1) for m in (maps, others))
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
    lengths = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return (a * b).sum(1) / np.where(lengths > 0, lengths, np.nan)


# --- Control heads ----------------------------------------------------------------------------------------------------


def split_head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Split a network into a copy of its body and its head, the dense layers: model(x) equals head(body(x))."""
    name = HEADS[type(model)]
    body = copy.deepcopy(model)
    setattr(body, name, nn.Identity())
    return body, model.get_submodule(name)


def maps_of_heads(
    body: nn.Module,
    heads: Sequence[nn.Module],
    images: np.ndarray,
    layer: str,
    targets: np.ndarray,
    method: Method = grad_cam,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
) -> np.ndarray:
    """Compute the maps (H,N,h,w), float32, that a network has with each of H heads on the same body.

    The body runs once for all heads. A head only adds its own gradient at the body's output, which the chain rule
    carries back to the layer. body: from split_head, in evaluation mode, as the heads. The other arguments are those
    of heat_maps.
    """
    parts = []
    for start in range(0, len(images), batch_size):
        chunk = slice(start, start + batch_size)
        inputs, classes = _to_device(images[chunk], targets[chunk], device)
        features, outputs = _forward(body, inputs, [layer])  # (n,C',h',w') and, in the layer, (n,C,h,w)
        maps = []
        for head in heads:
            at_head = _gradient_at_input(head, features.detach(), classes)
            [gradients] = torch.autograd.grad(features, [outputs[layer]], at_head, retain_graph=True)
            maps.append(method(outputs[layer].detach(), gradients))  # (n,h,w)
        parts.append(torch.stack(maps).cpu().numpy())
    return np.concatenate(parts, 1)


def _gradient_at_input(head: nn.Module, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute the gradient of the target logits (N,) of a head with respect to its input features."""
    features = features.requires_grad_()
    score = head(features).gather(1, targets[:, None]).sum()
    return torch.autograd.grad(score, [features])[0]


def rank_p_value(value: float, controls: np.ndarray) -> float:
    """Compute the exact one-sided p-value of a value among k controls (k,): the share that is at least as large.

    The value itself counts as one of k + 1, so p is never below 1 / (k + 1). A control that is nan counts as large.
    """
    return float((1 + (~(controls < value)).sum()) / (1 + len(controls)))


def what_is_left(value: float, control: float) -> str:
    """Say how much of a ratio above 1, the ratio of an even map, is left beside that of a control, in words."""
    if value <= 1:
        return "nothing: it is not above 1"
    if control >= value:
        return f"nothing: the controls reach {control:.2f}"
    if control <= 1:
        return f"all of it: the controls reach only {control:.2f}"
    return f"{value - control:.2f} of the {value - 1:.2f} above 1: the controls reach {control:.2f}"


def claim_verdict(conditions: Mapping[str, bool], is_beyond_controls: bool, smallest_p: float) -> str:
    """Turn the tests of a claim about maps into its verdict, in words.

    conditions: what the map should exceed -> whether it does. is_beyond_controls: whether it exceeds the controls, by
    corrected p-values; smallest_p is the smallest that so few controls can give. Without the controls, no claim is
    confirmed.
    """
    if smallest_p >= 0.05:
        return f"cannot be shown with so few controls (the smallest possible p is {smallest_p:.2f})"
    tests = {**conditions, "the controls": is_beyond_controls}
    word = "not confirmed" if not is_beyond_controls else "confirmed" if all(tests.values()) else "partly confirmed"
    return f"{word}: " + ", ".join(f"{'more' if holds else 'not more'} than {what}" for what, holds in tests.items())
