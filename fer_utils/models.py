"""The networks: one nn.Module per architecture.

All take (N,1,48,48) standardized floats. Classifiers return (N,7) logits; build_model makes one by name.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn
from torchvision.models import ResNet, efficientnet_b0, get_model_weights, resnet18

from fer_utils.internet import why_out_of_reach

# How a ResNet18 takes in an image: side of the first kernel, its stride, and whether max-pooling follows.
# After that its four stages see 12x12 ("imagenet", made for 224x224), 24x24 ("middle", "stride2") or all 48x48 pixels
# ("small"). "stride2" never makes a map of 48x48 with 64 channels, the largest in the network by far: on a GPU, where
# memory traffic counts more than arithmetic, that is what "middle" spends much of its time on.
STEMS = {"imagenet": (7, 2, True), "middle": (3, 1, True), "stride2": (3, 2, False), "small": (3, 1, False)}


class BaselineCNN(nn.Module):
    """LeNet-style network: three blocks of 3x3 convolution, ReLU and 2x2 max-pooling, then two dense layers.

    After LeCun et al. 1998 ("Gradient-based learning applied to document recognition"), with ReLU and dropout.
    """

    def __init__(self, num_classes: int = 7) -> None:
        """num_classes: width of the last layer."""
        super().__init__()
        blocks = []
        for channels_in, channels_out in [(1, 32), (32, 64), (64, 128)]:
            blocks += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*blocks)  # (N,1,48,48) -> (N,128,6,6)
        self.classifier = nn.Sequential(
            nn.Flatten(),  # (N,4608)
            nn.Dropout(0.5),
            nn.Linear(128 * 6 * 6, 512),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(512, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N,1,48,48) float -> (N,num_classes) logits."""
        return self.classifier(self.features(images))


def resnet_backbone(
    make: Callable[[], ResNet], stem: str, imagenet: dict[str, torch.Tensor] | None = None, channels: int = 1
) -> nn.Sequential:
    """A ResNet (He et al. 2016, arXiv:1512.03385) up to its last feature map: conv1, bn1, relu, maxpool, layer1 to 4.

    make: torchvision's function for it. stem: a key of STEMS; ValueError lists them. imagenet: weights to start from,
    as imagenet_weights gives them, else random. channels: of the images, 1 or 3. For one channel the 7x7 kernels of
    ImageNet are summed over red, green and blue: the same as showing a gray image in all three. Its other layers fit
    every stem; a 3x3 kernel starts at random.
    """
    if stem not in STEMS:
        raise ValueError(f"there is no stem {stem!r}; choose one of {', '.join(STEMS)}")
    kernel, stride, pool = STEMS[stem]
    conv1 = nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    body = make()
    if imagenet is not None:
        body.load_state_dict(imagenet)
        if kernel == 7:
            seen = imagenet["conv1.weight"]
            conv1.load_state_dict({"weight": seen.sum(1, keepdim=True) if channels == 1 else seen})
    layers = {"conv1": conv1, "bn1": body.bn1, "relu": body.relu, "maxpool": body.maxpool if pool else nn.Identity()}
    stages = {f"layer{i}": body.get_submodule(f"layer{i}") for i in range(1, 5)}
    backbone = nn.Sequential(OrderedDict(layers | stages))
    backbone.stem = stem  # shapes alone do not tell "middle" from "small"
    return backbone


def resnet18_backbone(stem: str = "imagenet", imagenet: dict[str, torch.Tensor] | None = None) -> nn.Sequential:
    """ResNet18 for one channel up to its last feature map (N,512,h,w); stem, imagenet: as in resnet_backbone."""
    return resnet_backbone(resnet18, stem, imagenet)


def vgg16_backbone(imagenet: dict[str, torch.Tensor] | None = None) -> nn.Sequential:
    """VGG16 (Simonyan & Zisserman 2015, arXiv:1409.1556) with batch norm, for one channel: block1 to block5.

    The last feature map of 48x48 pixels is (N,512,1,1). imagenet: of imagenet_weights("vgg16_bn"), else random.
    """
    blocks, channels = OrderedDict(), 1
    for number, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        layers = []
        for _ in range(depth):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        blocks[f"block{number}"] = nn.Sequential(*layers, nn.MaxPool2d(2))
    if imagenet is not None:
        in_a_row = nn.Sequential(*(layer for block in blocks.values() for layer in block))  # torchvision's "features"
        weights = {k.removeprefix("features."): v for k, v in imagenet.items() if k.startswith("features.")}
        in_a_row.load_state_dict(weights | {"0.weight": weights["0.weight"].sum(1, keepdim=True)})
    return nn.Sequential(blocks)


def imagenet_weights(name: str) -> dict[str, torch.Tensor] | None:
    """ImageNet weights of one of torchvision's networks, from torch's cache or the internet; None when out of reach.

    name: as torchvision has it, e.g. "resnet18". Says in a printed sentence which it is. Without a network it answers
    within seconds, with the environment variable FER_OFFLINE=1 at once.
    """
    weights = get_model_weights(name).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    reason = "" if cached.exists() else why_out_of_reach(weights.url)
    try:
        state = None if reason else weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = f"{cached} is damaged, delete it" if cached.exists() else type(error).__name__
    if reason:
        print(f"ImageNet weights are out of reach ({reason}): the network starts from scratch")
        return None
    print(f"ImageNet weights: {cached.name}")
    return state


def resnet18_head(outputs: int) -> nn.Sequential:
    """From the last feature map (N,512,h,w) to (N,outputs): mean over positions, then dense layers with dropout 0.3."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),  # (N,512)
        nn.Dropout(0.3),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(256, outputs),
    )


class LandmarkNetwork(nn.Module):
    """Finds the four landmarks: a backbone, then dense layers 512-256-8 with dropout of 0.3.

    The last layer is linear. It answers in pixels from the middle of the image, which are numbers of the size that
    layers are initialized for. A sigmoid would confine the points to the image, but an augmented face may have an eye
    outside it, and a sigmoid learns ever more slowly towards its ends.
    """

    outputs = ("left_eye", "right_eye", "left_lip_corner", "right_lip_corner")  # landmarks.POINTS, without MediaPipe

    def __init__(self, backbone: nn.Module) -> None:
        """backbone: (N,1,48,48) -> (N,512,h,w)."""
        super().__init__()
        self.backbone = backbone
        self.head = resnet18_head(2 * len(self.outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N,1,48,48) float -> (N,4,2): x and y of each point, as fractions of width and height."""
        return 0.5 + self.head(self.backbone(images)).float().unflatten(1, (-1, 2)) / 48  # bf16 near 0.5: 0.1 pixels


class LandmarkResNet18(LandmarkNetwork):
    """The landmark network on a ResNet18."""

    def __init__(self, stem: str = "imagenet", imagenet: dict[str, torch.Tensor] | None = None) -> None:
        """stem, imagenet: as in resnet18_backbone."""
        super().__init__(resnet18_backbone(stem, imagenet))


class ChannelGates(nn.Module):
    """Channel attention: every channel is multiplied by a gate between 0 and 1, computed from the mean of all channels.

    Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507) with a bottleneck of 32.
    """

    def __init__(self, channels: int = 512, bottleneck: int = 32) -> None:
        """channels: of the feature map. bottleneck: channels between the two 1x1 convolutions."""
        super().__init__()
        self.gates = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),  # squeeze: (N,C,h,w) -> (N,C,1,1)
            nn.Conv2d(channels, bottleneck, 1),
            nn.ReLU(),
            nn.Conv2d(bottleneck, channels, 1),
            nn.Sigmoid(),  # excite: (N,C,1,1) in 0..1
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N,C,h,w) -> (N,C,h,w)."""
        return features * self.gates(features)


class ChannelShift(nn.Module):
    """The control for ChannelGates: the same layers and parameters, but their output is added and not multiplied."""

    def __init__(self, channels: int = 512, bottleneck: int = 32) -> None:
        """channels, bottleneck: as in ChannelGates."""
        super().__init__()
        self.shift = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, bottleneck, 1), nn.ReLU(), nn.Conv2d(bottleneck, channels, 1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N,C,h,w) -> (N,C,h,w)."""
        return features + self.shift(features)


ATTENTIONS = {"none": nn.Identity, "gates": ChannelGates, "shift": ChannelShift}


class ResNet18(nn.Module):
    """ResNet18 for emotions: a backbone, optionally channel attention, then dense layers 512-256-7 with dropout 0.3."""

    def __init__(
        self,
        num_classes: int = 7,
        attention: str = "none",
        stem: str = "imagenet",
        imagenet: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """attention: a key of ATTENTIONS; ValueError lists them. stem, imagenet: as in resnet18_backbone."""
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(f"there is no attention {attention!r}; choose one of {', '.join(ATTENTIONS)}")
        self.backbone = resnet18_backbone(stem, imagenet)  # (N,1,48,48) -> (N,512,h,w)
        self.attention = ATTENTIONS[attention]()
        self.head = resnet18_head(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N,1,48,48) float -> (N,num_classes) logits."""
        return self.head(self.attention(self.backbone(images)))


class VGG16(nn.Module):
    """VGG16 with batch norm for emotions: a backbone, then the head of ResNet18.

    The original's three dense layers of 4,096 are made for 7x7 positions. Here one position is left.
    """

    def __init__(self, num_classes: int = 7, imagenet: dict[str, torch.Tensor] | None = None) -> None:
        """imagenet: as in vgg16_backbone."""
        super().__init__()
        self.backbone = vgg16_backbone(imagenet)  # (N,1,48,48) -> (N,512,1,1)
        self.head = resnet18_head(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N,1,48,48) float -> (N,num_classes) logits."""
        return self.head(self.backbone(images))


class EfficientNetB0(nn.Module):
    """EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946) for one channel.

    Made for 224x224 pixels, it halves an image five times: 48 pixels end as 2x2.
    """

    stems = ("imagenet", "small")  # stride of the first convolution: 2 or 1

    def __init__(
        self, num_classes: int = 7, stem: str = "imagenet", imagenet: dict[str, torch.Tensor] | None = None
    ) -> None:
        """stem: one of `stems`; ValueError lists them. imagenet: from imagenet_weights("efficientnet_b0"), else random.

        The kernels of the ImageNet stem are summed over red, green and blue.
        """
        super().__init__()
        if stem not in self.stems:
            raise ValueError(f"there is no stem {stem!r}; choose one of {', '.join(self.stems)}")
        body = efficientnet_b0()
        if imagenet is not None:
            body.load_state_dict(imagenet)
        old = body.features[0][0]
        conv = nn.Conv2d(1, old.out_channels, 3, stride=2 if stem == "imagenet" else 1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")  # as torchvision does
        if imagenet is not None:
            conv.load_state_dict({"weight": old.weight.sum(1, keepdim=True)})
        body.features[0][0] = conv
        self.backbone = body.features  # (N,1,48,48) -> (N,1280,2,2), or (N,1280,3,3) with the small stem
        self.backbone.stem = stem  # all shapes are those of the other stem
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(body.classifier[1].in_features, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N,1,48,48) float -> (N,num_classes) logits."""
        return self.head(self.backbone(images))


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
