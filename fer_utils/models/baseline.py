"""A LeNet-style CNN, the baseline."""

import torch
from torch import nn


class BaselineCNN(nn.Module):
    """Three blocks of 3x3 convolution, ReLU and 2x2 max-pooling, then two dense layers.

    The design follows LeNet (LeCun et al. 1998, "Gradient-based learning applied to document recognition"), with ReLU
    and dropout.
    """

    def __init__(self, num_classes: int = 7) -> None:
        """num_classes: number of outputs."""
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
        """Map images (N,1,48,48) float to logits (N,num_classes)."""
        features = self.features(images)  # (N,128,6,6)
        return self.classifier(features)  # (N,num_classes)
