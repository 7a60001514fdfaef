"""The network that finds four landmarks."""

import torch
from torch import nn

from fer_utils.models.resnet import resnet18_backbone, resnet18_head


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
