"""ResNet18 for gray images, with a choice of stems and channel attention."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import ResNet, resnet18

# The stem of a ResNet: side of the first kernel, its stride, and whether max-pooling follows.
# The four stages then start at 12x12 ("imagenet", designed for 224x224), 24x24 ("middle" and "stride2") or 48x48 pixels
# ("small"). "middle" first makes a map of 48x48 with 64 channels, by far the largest of the network. On a GPU, where
# memory traffic costs more than arithmetic, it spends much of its time on this map; "stride2" avoids it.
STEMS = {"imagenet": (7, 2, True), "middle": (3, 1, True), "stride2": (3, 2, False), "small": (3, 1, False)}


def resnet_backbone(
    make: Callable[[], ResNet], stem: str, imagenet: dict[str, torch.Tensor] | None = None, channels: int = 1
) -> nn.Sequential:
    """Build a ResNet (He et al. 2016, arXiv:1512.03385) up to its last feature map: conv1 to layer4, without the head.

    make: torchvision's function for the network. stem: a key of STEMS; ValueError lists them. imagenet: weights from
    imagenet_weights; None: random. channels: of the images, 1 or 3.

    For one channel, the 7x7 kernels of ImageNet are summed over red, green and blue, which equals showing a gray image
    in all three channels. A 3x3 stem starts at random; all other layers can take ImageNet weights with every stem.
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
            kernels = imagenet["conv1.weight"]  # (64,3,7,7)
            conv1.load_state_dict({"weight": kernels.sum(1, keepdim=True) if channels == 1 else kernels})
    layers = {"conv1": conv1, "bn1": body.bn1, "relu": body.relu, "maxpool": body.maxpool if pool else nn.Identity()}
    stages = {f"layer{i}": body.get_submodule(f"layer{i}") for i in range(1, 5)}
    return nn.Sequential(OrderedDict(layers | stages))


def resnet18_backbone(stem: str = "imagenet", imagenet: dict[str, torch.Tensor] | None = None) -> nn.Sequential:
    """Build a ResNet18 for gray images up to its last feature map (N,512,h,w); arguments as in resnet_backbone."""
    return resnet_backbone(resnet18, stem, imagenet)


def resnet18_head(outputs: int) -> nn.Sequential:
    """Build the head that maps a feature map (N,512,h,w) to (N,outputs): mean over positions, then dense layers."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),  # (N,512,1,1)
        nn.Flatten(),  # (N,512)
        nn.Dropout(0.3),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(256, outputs),
    )


class SqueezeExcite(nn.Module):
    """Channel attention: multiplies every channel by a gate between 0 and 1, computed from the means of all channels.

    Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507) with a bottleneck of 32.
    """

    def __init__(self, channels: int = 512, bottleneck: int = 32) -> None:
        """channels: of the feature map. bottleneck: number of channels between the two 1x1 convolutions."""
        super().__init__()
        self.gates = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),  # squeeze: (N,C,h,w) -> (N,C,1,1)
            nn.Conv2d(channels, bottleneck, 1),
            nn.ReLU(),
            nn.Conv2d(bottleneck, channels, 1),
            nn.Sigmoid(),  # excite: (N,C,1,1), from 0 to 1
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Multiply features (N,C,h,w) by gates (N,C,1,1)."""
        return features * self.gates(features)  # (N,C,h,w)


class ChannelShift(nn.Module):
    """The control for SqueezeExcite: the same layers and parameters, but added to the features, not multiplied."""

    def __init__(self, channels: int = 512, bottleneck: int = 32) -> None:
        """channels, bottleneck: as in SqueezeExcite."""
        super().__init__()
        self.shift = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, bottleneck, 1), nn.ReLU(), nn.Conv2d(bottleneck, channels, 1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Add shifts (N,C,1,1) to features (N,C,h,w)."""
        return features + self.shift(features)  # (N,C,h,w)


ATTENTIONS = {"none": nn.Identity, "gates": SqueezeExcite, "shift": ChannelShift}


class ResNet18(nn.Module):
    """A ResNet18 backbone, optional channel attention, then dense layers 512-256-7 with dropout 0.3."""

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
        """Map images (N,1,48,48) float to logits (N,num_classes)."""
        features = self.backbone(images)  # (N,512,h,w); h = w = 2 with the stem "imagenet", 3 or 6 with the others
        features = self.attention(features)  # (N,512,h,w)
        return self.head(features)  # (N,num_classes)
