"""VGG16 with batch norm for 48x48 images."""

from collections import OrderedDict

import torch
from torch import nn

from fer_utils.models.resnet import resnet18_head


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
