"""Which network something is: a spec, {"name": ..., "options": {...}}, and the network that it describes.

A spec holds names and numbers only. It is saved with weights and predictions, so that build_model can make the same
network again.
"""

import inspect
from collections.abc import Mapping

import torch
from torch import nn

from fer_utils.models.baseline import BaselineCNN
from fer_utils.models.efficientnet import EfficientNetB0
from fer_utils.models.landmark import LandmarkNet
from fer_utils.models.local_global import LocalGlobalNet
from fer_utils.models.resnet import ResNet18
from fer_utils.models.vgg import VGG16

ARCHITECTURES = {
    "baseline_cnn": BaselineCNN,
    "resnet18": ResNet18,
    "efficientnet_b0": EfficientNetB0,
    "vgg16": VGG16,
    "local_global": LocalGlobalNet,
    "landmark_net": LandmarkNet,
}
NOT_IN_A_SPEC = ("imagenet", "landmarks")  # weights and networks to start from, which a spec cannot hold

Spec = dict[str, object]


def make_spec(name: str, **options: object) -> Spec:
    """A complete spec: what is not given among the options has the architecture's default.

    ValueError lists the architectures, or the options of this one.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    defaults = {key: p.default for key, p in parameters.items() if key not in NOT_IN_A_SPEC}
    unknown = sorted(options.keys() - defaults.keys())
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}; choose from {', '.join(defaults)}")
    return {"name": name, "options": defaults | options}


def build_model(
    spec: str | Mapping[str, object],
    imagenet: dict[str, torch.Tensor] | None = None,
    landmarks: nn.Module | None = None,
    **options: object,
) -> nn.Module:
    """A new network, initialized at random; it keeps its complete spec in its attribute `spec`.

    spec: a spec, or the name of an architecture, for which `options` may be given: build_model("resnet18",
    stem="middle"). imagenet: weights to start from, see pretrained.imagenet_weights. landmarks: the trained network
    that a "local_global" with regions "landmarks" follows. ValueError says what is not known.
    """
    name, known = (spec, {}) if isinstance(spec, str) else (spec["name"], spec["options"])
    complete = make_spec(name, **known | options)
    start = {"imagenet": imagenet, "landmarks": landmarks}
    model = ARCHITECTURES[name](**complete["options"], **{k: v for k, v in start.items() if v is not None})
    model.spec = complete
    return model


def describe(spec: Mapping[str, object]) -> str:
    """A spec in a few words, such as "resnet18, stem middle": the options that differ from the defaults."""
    defaults = make_spec(spec["name"])["options"]
    changed = [f"{key} {value}" for key, value in spec["options"].items() if value != defaults.get(key)]
    return ", ".join([spec["name"], *changed])
