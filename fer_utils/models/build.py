"""Build a classifier by name."""

from functools import partial

from torch import nn

from fer_utils.models.baseline import BaselineCNN
from fer_utils.models.efficientnet import EfficientNetB0
from fer_utils.models.resnet import ResNet18
from fer_utils.models.vgg import VGG16

ARCHITECTURES = {
    "baseline_cnn": BaselineCNN,
    "resnet18": ResNet18,
    "attention_resnet18": partial(ResNet18, attention="gates"),
    "shift_resnet18": partial(ResNet18, attention="shift"),
    "efficientnet_b0": EfficientNetB0,
    "vgg16": VGG16,
}


def build_model(name: str, num_classes: int = 7, **options: object) -> nn.Module:
    """A new, randomly initialized classifier by name; ValueError lists the names there are.

    options: what else the architecture can be given, e.g. stem and imagenet for those of ResNet18.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](num_classes, **options)
