"""A face as a whole and in regions: a ResNet50, local features of four regions, attention, and their fusion.

After EfficientFace (Zhao, Liu & Zhou, AAAI 2021, "Robust lightweight facial expression recognition network with label
distribution training"): its local features come from four patches of an early feature map, each with convolutions of
its own, and its modulator is channel and spatial attention. Here the global part is a ResNet50, and both meet in the
classifier.
"""

import copy
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet50

from fer_utils.models.landmark import LandmarkNet
from fer_utils.models.resnet import SqueezeExcite, resnet_backbone

VIEWS = ("global", "local", "fused")  # what the classifier gets to know
REGIONS = ("patches", "whole", "landmarks")
QUARTERS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))  # x and y of the middles of the four patches


def cut_regions(features: torch.Tensor, centers: torch.Tensor, share: float = 0.5) -> torch.Tensor:
    """Four squares of a feature map (N,C,h,w), each sampled at h/2 x w/2 positions: (N,4,C,h/2,w/2).

    centers: (N,4,2), x and y of their middles in [0,1] of the map; moved so far that no square reaches beyond it.
    share: their side as a share of the map's. Half of it around QUARTERS gives the four patches as they are; all of it
    gives the whole map four times, at half its resolution.
    """
    n, _, height, width = features.shape
    size = (height // 2, width // 2)
    middle = 2 * centers.clamp(share / 2, 1 - share / 2) - 1  # grids reach from -1 to 1
    zoom = share * torch.eye(2, device=features.device).expand(n, 4, 2, 2)
    affine = torch.cat([zoom, middle.unsqueeze(3)], 3).flatten(0, 1)
    grid = F.affine_grid(affine, [4 * n, 1, *size], align_corners=False)  # (4N,h/2,w/2,2)
    below_each_other = grid.reshape(n, 4 * size[0], size[1], 2)
    sampled = F.grid_sample(features, below_each_other, padding_mode="border", align_corners=False)
    return sampled.unflatten(2, (4, size[0])).transpose(1, 2)


class RegionFeatures(nn.Module):
    """What is in each of four regions, found by convolutions of its own: kernels are not shared, but grouped."""

    def __init__(self, channels: int, width: int = 64) -> None:
        """channels: of the feature map. width: features for each region."""
        super().__init__()
        layers = []
        for before, after, kernel in [(channels, width, 1), (width, width, 3), (width, width, 3)]:
            conv = nn.Conv2d(4 * before, 4 * after, kernel, padding=kernel // 2, groups=4, bias=False)
            layers += [conv, nn.BatchNorm2d(4 * after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """(N,4,C,h,w) -> (N,4*width), the features of the first region first."""
        return self.layers(regions.flatten(1, 2))


class SpatialGates(nn.Module):
    """Spatial attention: every position is multiplied by a gate between 0 and 1, the same for all channels.

    A convolution looks at the mean and the maximum of all channels (CBAM: Woo et al. 2018, arXiv:1807.06521), with a
    kernel of 3 instead of 7, for maps of 12x12 positions and fewer.
    """

    def __init__(self) -> None:
        """Nothing to choose."""
        super().__init__()
        # The norm keeps gates from closing, or opening, altogether when features grow.
        self.gates = nn.Sequential(nn.Conv2d(2, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N,C,h,w) -> (N,C,h,w), by gates (N,1,h,w)."""
        return features * self.gates(torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1))


def attend(channels: int) -> nn.Sequential:
    """Channel attention, then spatial attention."""
    return nn.Sequential(SqueezeExcite(channels, channels // 16), SpatialGates())


class LocalGlobalNet(nn.Module):
    """A ResNet50 that classifies a face as a whole, by four regions of its first stage, or by both.

    Sizes are those for 48x48 pixels and the stem "imagenet".
    """

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
        """view: one of VIEWS; regions: one of REGIONS; ValueError lists them.

        regions: "patches", the four quarters; "whole", all four see the whole map at half its resolution, which costs
        the same and is the control; "landmarks", squares as large as the quarters around the points that `landmarks`
        finds, a trained network, of which a frozen copy is kept. attention: channel and spatial, after stages 1 to 3.
        stem, channels, imagenet: as in resnet_backbone, of "resnet50". width: features for each region.
        """
        super().__init__()
        for name, value, known in (("view", view, VIEWS), ("regions", regions, REGIONS)):
            if value not in known:
                raise ValueError(f"there is no {name} {value!r}; choose one of {', '.join(known)}")
        if (regions == "landmarks") != (landmarks is not None):
            raise ValueError('regions "landmarks" need a landmark network, and the others have no use for one')
        self.regions = regions
        self.landmarks = landmarks and copy.deepcopy(landmarks).requires_grad_(False).eval()
        self.register_buffer("quarters", torch.tensor(QUARTERS), persistent=False)
        calm = partial(resnet50, zero_init_residual=True)  # each block begins as its shortcut: Goyal et al. 2017
        body = dict(resnet_backbone(calm, stem, imagenet, channels).named_children())
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
        """(N,channels,H,W) float -> (N,num_classes) logits."""
        return self.head(torch.cat([part for part in self.look(images) if part is not None], 1))

    def look(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Images -> what is known of the whole (N,2048) and of the regions (N,4*width); None for what is not used."""
        features = self.early(images)
        whole = None if self.late is None else self.late(features)
        if self.local is None:
            return whole, None
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 would shift the regions
            regions = cut_regions(features.float(), self.centers(images), 1.0 if self.regions == "whole" else 0.5)
        return whole, self.local(regions)

    def centers(self, images: torch.Tensor) -> torch.Tensor:
        """The middles of the regions (N,4,2), x and y in [0,1]."""
        if self.landmarks is not None:
            gray = images.mean(1, keepdim=True)
            with torch.no_grad():
                return self.landmarks(F.interpolate(gray, (48, 48), mode="bilinear", antialias=True)).float()
        return self.quarters.expand(len(images), 4, 2)

    def train(self, mode: bool = True) -> "LocalGlobalNet":
        """As ever, but the landmark network always stays in evaluation mode."""
        super().train(mode)
        if self.landmarks is not None:
            self.landmarks.eval()
        return self


@torch.no_grad()
def attention_maps(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The spatial gates (N,1,h,w) that a network applies to images (N,C,H,W), in the order in which it does so."""
    maps: list[torch.Tensor] = []
    places = [module for module in model.modules() if isinstance(module, SpatialGates)]
    hooks = [place.gates.register_forward_hook(lambda *call: maps.append(call[-1])) for place in places]
    model(images)
    for hook in hooks:
        hook.remove()
    return maps
