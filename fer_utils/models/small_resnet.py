"""A residual network for small images; by default it is also a small network."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

# What follows the first convolution, and how large the map of the first stage is: "stride2" (24x24, the convolution has
# stride 2), "pool" (24x24, by max-pooling) or "full" (48x48, four times the cost). Each later stage halves the map.
STEMS = {"stride2": (2, False), "pool": (1, True), "full": (1, False)}
SHALLOW, DEEP = (1, 2, 2, 1), (2, 2, 2, 2)  # residual blocks per stage


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, pool_shortcut: bool, zero_init: bool) -> None:
        """stride: of the first convolution; 2 halves the map. The other two arguments are those of SmallResNet."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        if zero_init:
            nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            # A 1x1 convolution of stride 2 looks at one pixel in four; average pooling looks at all of them.
            pool = nn.AvgPool2d(stride) if pool_shortcut else nn.Identity()
            conv = nn.Conv2d(channels_in, channels_out, 1, 1 if pool_shortcut else stride, bias=False)
            self.shortcut = nn.Sequential(pool, conv, nn.BatchNorm2d(channels_out))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (N,channels_in,h,w) to (N,channels_out,h/stride,w/stride)."""
        residual = F.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.shortcut(features))


class SmallResNet(nn.Module):
    """A residual network; the default has six blocks of 20 to 160 channels, 625,187 parameters and 0.0224 GMACs.

    Two details are from He et al. 2019, "Bag of tricks" (arXiv:1812.01187): zero-initialized norms, with which every
    block starts as its shortcut, and average pooling in the shortcuts. With width 64 and deep=True, the stages have the
    size of those of ResNet18.
    """

    def __init__(
        self,
        num_classes: int = 7,
        width: int = 20,
        deep: bool = False,
        stem: str = "stride2",
        zero_init: bool = True,
        pool_shortcut: bool = True,
        dropout: float = 0.1,
    ) -> None:
        """width: channels of the first stage; each stage has twice as many as the one before.

        deep: whether every stage has two blocks, as in ResNet18. stem: a key of STEMS; ValueError lists them.
        zero_init: whether the last norm of each block starts at zero. pool_shortcut: whether shortcuts that halve the
        map average 2x2 pixels, or skip three of four. dropout: before the last layer.
        """
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"there is no stem {stem!r}; choose one of {', '.join(STEMS)}")
        stride, pool = STEMS[stem]
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2) if pool else nn.Identity(),
        )  # (N,1,48,48) -> (N,width,24,24)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        channels = width
        for number, count in enumerate(DEEP if deep else SHALLOW):
            blocks = []
            for position in range(count):
                stride = 2 if number > 0 and position == 0 else 1
                blocks.append(ResidualBlock(channels, width * 2**number, stride, pool_shortcut, zero_init))
                channels = width * 2**number
            stages[f"stage{number + 1}"] = nn.Sequential(*blocks)
        self.stages = nn.Sequential(stages)  # (N,width,24,24) -> (N,8*width,3,3)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),  # (N,8*width,1,1)
            nn.Flatten(),  # (N,8*width)
            nn.Dropout(dropout),
            nn.Linear(channels, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N,1,48,48) float to logits (N,num_classes)."""
        features = self.stages(self.stem(images))  # (N,8*width,3,3)
        return self.head(features)  # (N,num_classes)
