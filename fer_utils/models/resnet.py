"""ResNet18 for emotions, with its stems and channel attention."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import ResNet, resnet18

# How a ResNet18 takes in an image: side of the first kernel, its stride, and whether max-pooling follows.
# After that its four stages see 12x12 ("imagenet", made for 224x224), 24x24 ("middle", "stride2") or all 48x48 pixels
# ("small"). "stride2" never makes a map of 48x48 with 64 channels, the largest in the network by far: on a GPU, where
# memory traffic counts more than arithmetic, that is what "middle" spends much of its time on.
STEMS = {"imagenet": (7, 2, True), "middle": (3, 1, True), "stride2": (3, 2, False), "small": (3, 1, False)}


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
    return nn.Sequential(OrderedDict(layers | stages))


def resnet18_backbone(stem: str = "imagenet", imagenet: dict[str, torch.Tensor] | None = None) -> nn.Sequential:
    """ResNet18 for one channel up to its last feature map (N,512,h,w); stem, imagenet: as in resnet_backbone."""
    return resnet_backbone(resnet18, stem, imagenet)


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


class SqueezeExcite(nn.Module):
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


ATTENTIONS = {"none": nn.Identity, "gates": SqueezeExcite, "shift": ChannelShift}


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
