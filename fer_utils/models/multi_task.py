"""A network that predicts the emotion and the landmarks of a face at once."""

import torch
from torch import nn

from fer_utils.models.landmark import LandmarkNet
from fer_utils.models.resnet import ResNet18


class MultiTaskNet(nn.Module):
    """A ResNet18 with a second head on its backbone (multi-task learning: Caruana 1997).

    `classifier` is an ordinary ResNet18. From the same seed it starts with the same weights as one that is built alone,
    and draws the same dropout. So it differs from that one only by what the second head teaches the backbone.
    """

    def __init__(self, num_classes: int = 7, stem: str = "imagenet") -> None:
        """stem: a key of resnet.STEMS."""
        super().__init__()
        self.classifier = ResNet18(num_classes, stem=stem)
        self.point_head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),  # (N,512,1,1)
            nn.Flatten(),  # (N,512)
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Linear(256, 2 * len(LandmarkNet.outputs)),  # pixels from the center of the image
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N,1,48,48) float to (N,num_classes+8): logits, then x and y of four points in [0,1]."""
        features = self.classifier.backbone(images)  # (N,512,h,w)
        logits = self.classifier.head(features)  # (N,num_classes)
        points = 0.5 + self.point_head(features).float() / 48  # (N,8); in float32, see LandmarkNet
        return torch.cat([logits, points], 1)
