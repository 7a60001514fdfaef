"""Batched augmentation on the device: one tensor operation for a whole batch instead of one PIL call per image."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

# Mean and standard deviation of FER2013's training pixels on the scale 0-1 (notebook 01 measures them).
PIXEL_MEAN, PIXEL_SD = 0.508, 0.255

# Left eye, right eye, left lip corner, right lip corner: which of them each becomes in a mirror image.
MIRROR_ORDER = (1, 0, 3, 2)


@dataclass(frozen=True)
class Augment:
    """How far each image may be changed. Every strength is drawn anew for each image; 0 switches a change off.

    flip: probability of a mirror image. shift: largest move, as a fraction of the width, in x and in y.
    rotate: largest angle in degrees. scale: largest relative zoom, in or out. brightness: largest offset, as a
    fraction of the full pixel range. contrast: largest relative gain, up or down.
    """

    flip: float = 0.5
    shift: float = 0.08
    rotate: float = 12.0
    scale: float = 0.12
    brightness: float = 0.2
    contrast: float = 0.2

    def __post_init__(self) -> None:
        """Refuse strengths that make no image: ValueError names the field."""
        for name, highest in {
            "flip": 1,
            "shift": 1,
            "rotate": 180,
            "scale": 0.9,
            "brightness": 1,
            "contrast": 1,
        }.items():
            value = getattr(self, name)
            if not 0 <= value <= highest:
                raise ValueError(f"Augment.{name} is {value}; it must lie between 0 and {highest}")

    def without(self, *names: str) -> "Augment":
        """The same strengths with the named ones switched off."""
        return replace(self, **dict.fromkeys(names, 0.0))

    @property
    def moves(self) -> bool:
        """Whether pixels change their places, and not only their values."""
        return bool(self.flip or self.shift or self.rotate or self.scale)


NO_AUGMENT = Augment().without("flip", "shift", "rotate", "scale", "brightness", "contrast")


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N,48,48) at rest -> standardized float32 (N,1,48,48), the input of every network."""
    return (images.unsqueeze(1).float() / 255 - PIXEL_MEAN) / PIXEL_SD


def augment_batch(images: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    """Change each image of a batch at random.

    images: (N,1,H,W) float, standardized. generator: on the same device as images; the only source of chance.
    Returns a tensor of the same shape.
    """
    if how.moves:
        images = warp(images, random_affine(len(images), how, generator))
    return relight(images, how, generator)


def augment_with_points(
    images: torch.Tensor, points: torch.Tensor, how: Augment, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change each image of a batch at random, and move its landmarks (N,4,2) along with its pixels.

    As augment_batch; the same seed changes the images in the same way. A point may end up outside [0,1].
    """
    if how.moves:
        affine = random_affine(len(images), how, generator)
        images, points = warp(images, affine), move_points(points, affine)
    return relight(images, how, generator), points


def warp(images: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Sample images (N,1,H,W) anew, each by its matrix (N,2,3); what comes from outside repeats the border."""
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def move_points(points: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Where landmarks (N,4,2), in [0,1] of width and height, lie after `warp` with the same matrices (N,2,3).

    The matrices lead from the new image to the old one, points go the other way: by the inverse. In a mirror image
    the left eye has become the right one, so the order changes as well.
    """
    turn, shift = affine[:, :, :2], affine[:, None, :, 2]
    back = torch.linalg.inv_ex(turn).inverse  # inv itself would wait for the GPU
    moved = ((2 * points - 1 - shift) @ back.mT + 1) / 2  # warp measures from -1 to 1
    mirrored = turn[:, 0, 0] * turn[:, 1, 1] < turn[:, 0, 1] * turn[:, 1, 0]
    return torch.where(mirrored[:, None, None], moved[:, MIRROR_ORDER], moved)


def relight(images: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    """Change brightness and contrast of each image (N,1,H,W) at random."""
    if how.brightness or how.contrast:
        gain = 1 + how.contrast * _uniform(len(images), generator).view(-1, 1, 1, 1)
        offset = how.brightness / PIXEL_SD * _uniform(len(images), generator).view(-1, 1, 1, 1)
        images = images * gain + offset
    return images


def random_affine(n: int, how: Augment, generator: torch.Generator) -> torch.Tensor:
    """(n,2,3) matrices that map output to input coordinates (-1..1), as torch's affine_grid expects them."""
    angle = torch.deg2rad(how.rotate * _uniform(n, generator))
    zoom = 1 + how.scale * _uniform(n, generator)
    mirror = 1 - 2 * (torch.rand(n, device=generator.device, generator=generator) < how.flip).float()
    shift_x, shift_y = (2 * how.shift * _uniform(n, generator) for _ in "xy")  # the grid is 2 wide
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [torch.stack([mirror * cos, -sin, shift_x], 1), torch.stack([mirror * sin, cos, shift_y], 1)]
    return torch.stack(rows, 1)


def _uniform(n: int, generator: torch.Generator) -> torch.Tensor:
    """N numbers, uniform in -1..1, on the generator's device."""
    return 2 * torch.rand(n, device=generator.device, generator=generator) - 1
