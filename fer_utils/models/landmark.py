"""A network that predicts four landmarks of a face."""

import torch
from torch import nn

from fer_utils.models.resnet import resnet18_backbone, resnet18_head
from fer_utils.models.vgg import vgg16_backbone


class LandmarkNet(nn.Module):
    """A backbone, then dense layers 512-256-8 with dropout of 0.3, which predict four landmarks.

    The last layer is linear and predicts pixels from the center of the image, which suits the usual initialization.
    A sigmoid would keep the points inside the image, but an augmented face may have an eye outside it, and the gradient
    of a sigmoid vanishes toward its ends.
    """

    outputs = ("left_eye", "right_eye", "left_lip_corner", "right_lip_corner")  # landmarks.POINTS, without MediaPipe

    def __init__(
        self,
        backbone: str = "resnet18",
        stem: str = "imagenet",
        imagenet: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """backbone: "resnet18" or "vgg16"; ValueError for any other.

        stem: of the ResNet18, a key of resnet.STEMS. imagenet: weights to start from; None: random.
        """
        super().__init__()
        if backbone not in ("resnet18", "vgg16"):
            raise ValueError(f'there is no backbone {backbone!r}; choose "resnet18" or "vgg16"')
        self.backbone = resnet18_backbone(stem, imagenet) if backbone == "resnet18" else vgg16_backbone(imagenet)
        self.head = resnet18_head(2 * len(self.outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N,1,48,48) float to points (N,4,2): x and y as fractions of width and height."""
        features = self.backbone(images)  # (N,512,h,w)
        pixels = self.head(features).float()  # (N,8); in float32, because bf16 near 0.5 is only exact to 0.1 pixels
        return 0.5 + pixels.unflatten(1, (-1, 2)) / 48  # (N,4,2)
