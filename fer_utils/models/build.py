"""Build networks from a spec: {"name": ..., "options": {...}}.

A spec holds only names and numbers. It is saved with weights and predictions, so that `build_model` can build the same
network again.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fer_utils.models.baseline import BaselineCNN
from fer_utils.models.efficientnet import EfficientNetB0
from fer_utils.models.landmark import LandmarkNet
from fer_utils.models.local_global import LocalGlobalNet
from fer_utils.models.multi_task import MultiTaskNet
from fer_utils.models.resnet import ResNet18
from fer_utils.models.small_resnet import SmallResNet
from fer_utils.models.small_vit import SmallViT
from fer_utils.models.vgg import VGG16

ARCHITECTURES = {
    "baseline_cnn": BaselineCNN,
    "resnet18": ResNet18,
    "efficientnet_b0": EfficientNetB0,
    "vgg16": VGG16,
    "small_resnet": SmallResNet,
    "small_vit": SmallViT,
    "local_global": LocalGlobalNet,
    "landmark_net": LandmarkNet,
    "multi_task_net": MultiTaskNet,
}
NOT_IN_A_SPEC = ("imagenet", "landmarks")  # initial weights and networks: a spec holds only names and numbers

Spec = dict[str, Any]


def make_spec(name: str, **options: object) -> Spec:
    """Make a complete spec; options that are not given get the defaults of the architecture.

    ValueError for an unknown architecture or option lists the known ones.
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
    spec: str | Mapping[str, Any],
    imagenet: dict[str, torch.Tensor] | None = None,
    landmarks: nn.Module | None = None,
    **options: object,
) -> nn.Module:
    """Build a new network with random weights; its attribute `spec` is the complete spec.

    spec: a spec, or the name of an architecture with `options`, such as build_model("resnet18", stem="middle").
    imagenet: weights to start from, see pretrained.imagenet_weights. landmarks: a trained LandmarkNet, which
    "local_global" needs for regions "landmarks". ValueError for an unknown architecture or option.
    """
    name, spec_options = (spec, {}) if isinstance(spec, str) else (spec["name"], spec["options"])
    complete = make_spec(name, **spec_options | options)
    start = {"imagenet": imagenet, "landmarks": landmarks}
    model = ARCHITECTURES[name](**complete["options"], **{k: v for k, v in start.items() if v is not None})
    model.spec = complete
    return model


def describe(spec: Mapping[str, Any]) -> str:
    """Describe a spec in a few words, by the options that differ from the defaults: "resnet18, stem middle"."""
    defaults = make_spec(spec["name"])["options"]
    changed = [f"{key} {value}" for key, value in spec["options"].items() if value != defaults.get(key)]
    return ", ".join([spec["name"], *changed])
