"""EfficientNet-B0 for gray images."""

import torch
from torch import nn
from torchvision.models import efficientnet_b0


class EfficientNetB0(nn.Module):
    """EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946) for gray images.

    The network was designed for 224x224 pixels and halves an image five times: 48x48 pixels become 2x2.
    """

    stems = ("imagenet", "small")  # the first convolution has stride 2 or 1

    def __init__(
        self, num_classes: int = 7, stem: str = "imagenet", imagenet: dict[str, torch.Tensor] | None = None
    ) -> None:
        """stem: one of `stems`; ValueError lists them.

        imagenet: weights from imagenet_weights("efficientnet_b0"); None: random. The kernels of the first ImageNet
        convolution are summed over red, green and blue.
        """
        super().__init__()
        if stem not in self.stems:
            raise ValueError(f"there is no stem {stem!r}; choose one of {', '.join(self.stems)}")
        body = efficientnet_b0()
        if imagenet is not None:
            body.load_state_dict(imagenet)
        old = body.features[0][0]
        conv = nn.Conv2d(1, old.out_channels, 3, stride=2 if stem == "imagenet" else 1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")  # as torchvision does
        if imagenet is not None:
            conv.load_state_dict({"weight": old.weight.sum(1, keepdim=True)})
        body.features[0][0] = conv
        self.backbone = body.features  # (N,1,48,48) -> (N,1280,2,2), or (N,1280,3,3) with the small stem
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(body.classifier[1].in_features, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N,1,48,48) float to logits (N,num_classes)."""
        features = self.backbone(images)  # (N,1280,2,2), or (N,1280,3,3) with the small stem
        return self.head(features)  # (N,num_classes)
