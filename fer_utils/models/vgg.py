"""VGG16 with batch norm for gray images of 48x48 pixels."""

from collections import OrderedDict

import torch
from torch import nn

from fer_utils.models.resnet import resnet18_head


def vgg16_backbone(imagenet: dict[str, torch.Tensor] | None = None) -> nn.Sequential:
    """Build the five blocks of VGG16 (Simonyan & Zisserman 2015, arXiv:1409.1556) with batch norm, for gray images.

    48x48 pixels become a feature map (N,512,1,1). imagenet: weights from imagenet_weights("vgg16_bn"); None: random.
    """
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 1
    for number, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        layers: list[nn.Module] = []
        for _ in range(depth):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        blocks[f"block{number}"] = nn.Sequential(*layers, nn.MaxPool2d(2))
    if imagenet is not None:
        flat = nn.Sequential(
            *(layer for block in blocks.values() for layer in block.children())
        )  # like torchvision's "features"
        weights = {k.removeprefix("features."): v for k, v in imagenet.items() if k.startswith("features.")}
        first = weights["0.weight"].sum(1, keepdim=True)  # (64,3,3,3) -> (64,1,3,3)
        flat.load_state_dict(weights | {"0.weight": first})
    return nn.Sequential(blocks)


class VGG16(nn.Module):
    """A VGG16 backbone with batch norm, then the head of ResNet18.

    The original has three dense layers of 4,096 features for 7x7 positions. Here only one position is left.
    """

    def __init__(self, num_classes: int = 7, imagenet: dict[str, torch.Tensor] | None = None) -> None:
        """imagenet: as in vgg16_backbone."""
        super().__init__()
        self.backbone = vgg16_backbone(imagenet)  # (N,1,48,48) -> (N,512,1,1)
        self.head = resnet18_head(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N,1,48,48) float to logits (N,num_classes)."""
        features = self.backbone(images)  # (N,512,1,1)
        return self.head(features)  # (N,num_classes)
