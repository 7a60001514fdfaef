"""A network with a global and a local branch: a ResNet50, features of four regions, attention, and their fusion.

The design follows EfficientFace (Zhao, Liu & Zhou, AAAI 2021, "Robust lightweight facial expression recognition network
with label distribution training"). Its local features come from four patches of an early feature map, each with its own
convolutions, and its modulator is channel and spatial attention. Here the global branch is a ResNet50, and the
classifier takes the features of both branches.
"""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50

from fer_utils.models.landmark import LandmarkNet
from fer_utils.models.resnet import SqueezeExcite, resnet_backbone

VIEWS = ("global", "local", "fused")  # the features that the classifier takes
REGIONS = ("patches", "whole", "landmarks")
QUARTERS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))  # centers (x, y) of the four patches


def cut_regions(features: torch.Tensor, centers: torch.Tensor, share: float = 0.5) -> torch.Tensor:
    """Sample four squares of a feature map (N,C,h,w) at h/2 x w/2 positions each: (N,4,C,h/2,w/2).

    centers: (N,4,2), x and y of each square in [0,1] of the map; moved inward where a square would leave the map.
    share: side of a square as a share of the map's side. With 0.5 and QUARTERS the squares are the four patches, with 1
    each is the whole map at half its resolution.
    """
    n, _, height, width = features.shape
    size = (height // 2, width // 2)
    middle = 2 * centers.clamp(share / 2, 1 - share / 2) - 1  # (N,4,2), from -1 to 1 as affine_grid expects
    zoom = share * torch.eye(2, device=features.device).expand(n, 4, 2, 2)  # (N,4,2,2)
    affine = torch.cat([zoom, middle.unsqueeze(3)], 3).flatten(0, 1)  # (4N,2,3)
    grid = F.affine_grid(affine, [4 * n, 1, *size], align_corners=False)  # (4N,h/2,w/2,2)
    stacked = grid.reshape(n, 4 * size[0], size[1], 2)  # (N,2h,w/2,2): the four grids below each other
    sampled = F.grid_sample(features, stacked, padding_mode="border", align_corners=False)  # (N,C,2h,w/2)
    return sampled.unflatten(2, (4, size[0])).transpose(1, 2)  # (N,4,C,h/2,w/2)


class RegionFeatures(nn.Module):
    """Convolutions for four regions. Each region has its own kernels; grouped convolutions compute all four at once."""

    def __init__(self, channels: int, width: int = 64) -> None:
        """channels: of the feature map. width: number of features per region."""
        super().__init__()
        layers = []
        for before, after, kernel in [(channels, width, 1), (width, width, 3), (width, width, 3)]:
            conv = nn.Conv2d(4 * before, 4 * after, kernel, padding=kernel // 2, groups=4, bias=False)
            layers += [conv, nn.BatchNorm2d(4 * after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """Map regions (N,4,C,h,w) to features (N,4*width); those of the first region come first."""
        return self.layers(regions.flatten(1, 2))  # (N,4C,h,w) -> (N,4*width)


class SpatialGates(nn.Module):
    """Spatial attention: multiplies every position by a gate between 0 and 1, the same for all channels.

    A convolution computes the gates from the mean and the maximum over channels (CBAM: Woo et al. 2018,
    arXiv:1807.06521). Its kernel is 3x3 instead of 7x7, because the maps have at most 12x12 positions.
    """

    def __init__(self) -> None:
        """There are no options."""
        super().__init__()
        # Without batch norm the gates would saturate at 0 or 1 when the features grow.
        self.gates = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Multiply features (N,C,h,w) by gates (N,1,h,w)."""
        summary = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)  # (N,2,h,w)
        return features * self.gates(summary)  # (N,C,h,w)


def attend(channels: int) -> nn.Sequential:
    """Build channel attention followed by spatial attention."""
    return nn.Sequential(SqueezeExcite(channels, channels // 16), SpatialGates())


class LocalGlobalNet(nn.Module):
    """A ResNet50 that classifies a face by its last features, by four regions of its first stage, or by both.

    Shapes in comments are those for 48x48 pixels and the stem "imagenet".
    """

    quarters: torch.Tensor  # (4,2), a buffer: the centers of the four quarters

    def __init__(
        self,
        num_classes: int = 7,
        view: str = "fused",
        regions: str = "patches",
        attention: bool = False,
        stem: str = "imagenet",
        channels: int = 1,
        imagenet: dict[str, torch.Tensor] | None = None,
        landmarks: LandmarkNet | None = None,
        width: int = 64,
    ) -> None:
        """view: one of VIEWS. regions: one of REGIONS. ValueError lists them.

        Regions "patches" are the four quarters. With "whole", the control of equal cost, each region is the whole map
        at half its resolution. With "landmarks" they are squares of the size of a quarter around the points that
        `landmarks` predicts, a trained network that stays frozen.

        attention: channel and spatial attention after stages 1 to 3. stem, channels, imagenet: as in resnet_backbone,
        with weights of "resnet50". width: number of features per region.
        """
        super().__init__()
        for name, value, choices in (("view", view, VIEWS), ("regions", regions, REGIONS)):
            if value not in choices:
                raise ValueError(f"there is no {name} {value!r}; choose one of {', '.join(choices)}")
        if (regions == "landmarks") != (landmarks is not None):
            raise ValueError('regions "landmarks" need a landmark network, and the others cannot use one')
        self.regions = regions
        self.landmarks = landmarks and landmarks.requires_grad_(False).eval()
        self.register_buffer("quarters", torch.tensor(QUARTERS), persistent=False)
        make = partial(resnet50, zero_init_residual=True)  # each block starts as the identity (Goyal et al. 2017)
        body = dict(resnet_backbone(make, stem, imagenet, channels).named_children())
        for number, size in enumerate((256, 512, 1024) if attention else (), 1):
            body[f"layer{number}"] = nn.Sequential(body[f"layer{number}"], attend(size))
        late = ("layer2", "layer3", "layer4")
        self.early = nn.Sequential(OrderedDict((k, v) for k, v in body.items() if k not in late))  # (N,256,12,12)
        self.late = self.local = None
        if view != "local":
            pool = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
            self.late = nn.Sequential(OrderedDict({k: body[k] for k in late} | pool))  # (N,2048)
        if view != "global":
            self.local = RegionFeatures(256, width)  # (N,4*width)
        self.head = nn.Sequential(
            nn.Dropout(0.3),
            nn.Linear((self.late is not None) * 2048 + (self.local is not None) * 4 * width, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N,channels,H,W) float to logits (N,num_classes)."""
        features = torch.cat([part for part in self.look(images) if part is not None], 1)  # (N,2048 + 4*width)
        return self.head(features)  # (N,num_classes)

    def look(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Compute global features (N,2048) and local features (N,4*width); None for a branch that is not used."""
        features = self.early(images)  # (N,256,12,12)
        whole = None if self.late is None else self.late(features)  # (N,2048)
        if self.local is None:
            return whole, None
        share = 1.0 if self.regions == "whole" else 0.5
        with torch.autocast(images.device.type, enabled=False):  # rounding to bf16 would shift the regions
            regions = cut_regions(features.float(), self.centers(images), share)  # (N,4,256,6,6)
        return whole, self.local(regions)

    def centers(self, images: torch.Tensor) -> torch.Tensor:
        """Return the centers (N,4,2) of the regions, x and y in [0,1]."""
        if self.landmarks is not None:
            gray = images.mean(1, keepdim=True)
            with torch.no_grad():
                return self.landmarks(F.interpolate(gray, (48, 48), mode="bilinear", antialias=True)).float()
        return self.quarters.expand(len(images), 4, 2)

    def train(self, mode: bool = True) -> "LocalGlobalNet":
        """Set the mode as usual, but keep the landmark network in evaluation mode."""
        super().train(mode)
        if self.landmarks is not None:
            self.landmarks.eval()
        return self


@torch.no_grad()
def attention_maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Return the spatial gates (N,1,h,w) that a network computes for images (N,C,H,W), in the order of its layers."""
    maps: list[torch.Tensor] = []
    places = [module for module in model.modules() if isinstance(module, SpatialGates)]
    hooks = [place.gates.register_forward_hook(lambda *call: maps.append(call[-1])) for place in places]
    model(images)
    for hook in hooks:
        hook.remove()
    return maps
