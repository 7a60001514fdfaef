"""The network that finds four landmarks."""

import torch
from torch import nn

from fer_utils.models.resnet import resnet18_backbone, resnet18_head
from fer_utils.models.vgg import vgg16_backbone


class LandmarkNet(nn.Module):
    """Finds the four landmarks: a backbone, then dense layers 512-256-8 with dropout of 0.3.

    The last layer is linear. It answers in pixels from the middle of the image, which are numbers of the size that
    layers are initialized for. A sigmoid would confine the points to the image, but an augmented face may have an eye
    outside it, and a sigmoid learns ever more slowly towards its ends.
    """

    outputs = ("left_eye", "right_eye", "left_lip_corner", "right_lip_corner")  # landmarks.POINTS, without MediaPipe

    def __init__(
        self,
        backbone: str = "resnet18",
        stem: str = "imagenet",
        imagenet: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """backbone: "resnet18" or "vgg16"; stem: of the ResNet18, see resnet.STEMS. imagenet: weights to start from.

        ValueError when there is no such backbone or stem.
        """
        super().__init__()
        if backbone not in ("resnet18", "vgg16"):
            raise ValueError(f'there is no backbone {backbone!r}; choose "resnet18" or "vgg16"')
        self.backbone = resnet18_backbone(stem, imagenet) if backbone == "resnet18" else vgg16_backbone(imagenet)
        self.head = resnet18_head(2 * len(self.outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N,1,48,48) float -> (N,4,2): x and y of each point, as fractions of width and height."""
        return 0.5 + self.head(self.backbone(images)).float().unflatten(1, (-1, 2)) / 48  # bf16 near 0.5: 0.1 pixels
