"""Augment whole batches on the device, with tensor operations instead of one PIL call per image."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import beta

# Mean and standard deviation of the training pixels of FER2013 on the scale 0-1 (notebook 01 measures them).
PIXEL_MEAN, PIXEL_SD = 0.508, 0.255

# In a mirror image, left and right change places: left eye, right eye, left lip corner, right lip corner.
MIRROR_ORDER = (1, 0, 3, 2)


def require_number(name: str, value: object, low: float, high: float) -> None:
    """Raise ValueError with the name of the setting unless value is a number from low to high; True is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number between {low:g} and {high:g}")


@dataclass(frozen=True)
class Augment:
    """Strengths of the augmentation; 0 switches a transform off. Random values are drawn anew for each image."""

    flip: float = 0.5  # probability of a horizontal flip
    shift: float = 0.08  # largest shift in x and in y, as a fraction of the width
    rotate: float = 12.0  # largest angle, in degrees
    scale: float = 0.12  # largest relative zoom, in or out
    brightness: float = 0.2  # largest offset, as a fraction of the full pixel range
    contrast: float = 0.2  # largest relative gain, up or down
    # Flip every image in every other epoch, instead of at random with probability `flip` (Jordan 2024,
    # arXiv:2404.00498). This needs a training loop, which knows the epoch.
    alternate: bool = False
    # Probability that a rectangle is made gray (random erasing: Zhong et al. 2017, arXiv:1708.04896; cutout uses
    # squares).
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)  # smallest and largest share of the image that is erased
    # The next two mix each image and its label with those of another image. The share comes from Beta(alpha, alpha).
    # With both on, each image gets one of the two, with equal probability.
    mixup: float = 0.0  # alpha for blending all pixels (Zhang et al. 2018, arXiv:1710.09412)
    cutmix: float = 0.0  # alpha for pasting a rectangle (Yun et al. 2019, arXiv:1905.04899)

    def __post_init__(self) -> None:
        """Refuse strengths that make no sense; ValueError names the field."""
        highest = {"flip": 1, "shift": 1, "rotate": 180, "scale": 0.9, "brightness": 1, "contrast": 1}
        highest |= {"erase": 1, "mixup": 100, "cutmix": 100}
        for name, high in highest.items():
            require_number(f"Augment.{name}", getattr(self, name), 0, high)
        if not isinstance(self.erase_area, Sequence) or len(self.erase_area) != 2:
            raise ValueError(f"Augment.erase_area is {self.erase_area!r}; it must be two numbers, e.g. (0.02, 0.33)")
        smallest, largest = self.erase_area
        require_number("the smaller part of Augment.erase_area", smallest, 1e-4, 1)
        require_number("the larger part of Augment.erase_area", largest, smallest, 1)

    def without(self, *names: str) -> "Augment":
        """Return the same strengths with the named ones switched off."""
        return replace(self, **{name: type(getattr(self, name))() for name in names})

    @property
    def moves(self) -> bool:
        """Whether pixels move; otherwise only their values change."""
        return bool(self.flip or self.shift or self.rotate or self.scale or self.alternate)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others, which turns labels into shares of two classes."""
        return bool(self.mixup or self.cutmix)


NO_AUGMENT = Augment().without("flip", "shift", "rotate", "scale", "brightness", "contrast")


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Standardize images (N,48,48) uint8 to float32 (N,1,48,48), the input of all networks.

    Color images (N,3,H,W) keep their shape.
    """
    if images.dim() == 3:
        images = images.unsqueeze(1)  # (N,1,48,48)
    return (images.float() / 255 - PIXEL_MEAN) / PIXEL_SD


def augment_batch(
    images: torch.Tensor, how: Augment, generator: torch.Generator, mirror: torch.Tensor | None = None
) -> torch.Tensor:
    """Augment each image of a batch at random, with all transforms except mixing (see `mix`).

    images: (N,1,H,W) float, standardized. generator: the only source of random numbers, on the device of the images.
    mirror: (N,) bool, which images to flip; None: at random. Returns a tensor of the same shape.
    """
    if how.moves:
        images = warp(images, random_affine(len(images), how, generator, mirror))
    return erase(relight(images, how, generator), how, generator)


def augment_with_points(
    images: torch.Tensor,
    points: torch.Tensor,
    how: Augment,
    generator: torch.Generator,
    mirror: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment images like augment_batch, and move their landmarks (N,4,2) along with the pixels.

    The same seed gives the same images as in augment_batch. A point may end up outside [0,1]. Raises ValueError for
    mixup and cutmix, because the mean of two sets of landmarks belongs to no face.
    """
    if how.mixes:
        raise ValueError("landmarks cannot be mixed; switch off Augment.mixup and Augment.cutmix")
    if how.moves:
        affine = random_affine(len(images), how, generator, mirror)
        images, points = warp(images, affine), move_points(points, affine)
    return erase(relight(images, how, generator), how, generator), points


def mix(
    images: torch.Tensor, targets: torch.Tensor, how: Augment, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix every image and its target with its neighbor in the batch, by mixup or cutmix.

    images: (N,1,H,W). targets: (N,C) shares of the classes. Batches are shuffled, so the neighbor is a random image.
    Each image draws its own share.
    """
    n, device = len(images), images.device
    others, other_targets = images.roll(1, 0), targets.roll(1, 0)
    pasted = torch.zeros(n, 1, 1, 1, device=device)  # share of the neighbor at every pixel, (N,1,1,1) or (N,1,H,W)
    if how.mixup:
        pasted = _beta_shares(n, how.mixup, generator).view(-1, 1, 1, 1)
    if how.cutmix:
        side = _beta_shares(n, how.cutmix, generator).sqrt()  # (N,)
        middle_y, middle_x = (torch.rand(n, device=device, generator=generator) for _ in "yx")
        boxes = rectangles(middle_y - side / 2, middle_x - side / 2, side, side, images.shape[-2:])
        use_box = torch.rand(n, device=device, generator=generator) < (0.5 if how.mixup else 1.0)
        pasted = torch.where(use_box.view(-1, 1, 1, 1), boxes, pasted)
    share = pasted.mean((1, 2, 3)).unsqueeze(1)  # (N,1); only the part of a box inside the image counts
    return images.lerp(others, pasted.expand_as(images)), targets.lerp(other_targets, share.expand_as(targets))


def erase(images: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    """Erase a rectangle of each image (N,1,H,W) with probability how.erase; its pixels become 0, the mean gray.

    As in the paper, the ratio of height to width is between 0.3 and 3.3. The rectangle lies inside the image.
    """
    if not how.erase:
        return images
    n, device = len(images), images.device
    draw = functools.partial(torch.rand, n, device=device, generator=generator)
    smallest, largest = how.erase_area
    area = smallest + (largest - smallest) * draw()
    ratio = torch.exp(math.log(3.3) * (2 * draw() - 1))
    height, width = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    boxes = rectangles(draw() * (1 - height), draw() * (1 - width), height, width, images.shape[-2:])  # (N,1,H,W)
    return torch.where((boxes > 0) & (draw() < how.erase).view(-1, 1, 1, 1), 0.0, images)


def warp(images: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Resample images (N,1,H,W), each with its matrix (N,2,3); outside the image, the border repeats."""
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)  # (N,H,W,2)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def move_points(points: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Move landmarks (N,4,2), in [0,1] of width and height, as `warp` with the same matrices (N,2,3) moves pixels.

    The matrices map the new image to the old one, so points need the inverse matrices. After a flip the left eye is the
    right one, so the order of the points changes, too.
    """
    turn, shift = affine[:, :, :2], affine[:, None, :, 2]  # (N,2,2), (N,1,2)
    (a, b), (c, d) = turn.permute(1, 2, 0)  # (N,) each
    # torch's inverse may call libraries that cannot be captured in a CUDA graph, so the inverse is written out.
    back = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / (a * d - b * c).view(-1, 1, 1)  # (N,2,2)
    moved = ((2 * points - 1 - shift) @ back.mT + 1) / 2  # (N,4,2); warp uses coordinates from -1 to 1
    mirrored = turn[:, 0, 0] * turn[:, 1, 1] < turn[:, 0, 1] * turn[:, 1, 0]  # (N,): negative determinant
    return torch.where(mirrored[:, None, None], torch.stack([moved[:, i] for i in MIRROR_ORDER], 1), moved)


def relight(images: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    """Change brightness and contrast of each image (N,1,H,W) at random."""
    if how.brightness or how.contrast:
        gain = 1 + how.contrast * _uniform(len(images), generator).view(-1, 1, 1, 1)
        offset = how.brightness / PIXEL_SD * _uniform(len(images), generator).view(-1, 1, 1, 1)
        images = images * gain + offset
    return images


def random_affine(n: int, how: Augment, generator: torch.Generator, mirror: torch.Tensor | None = None) -> torch.Tensor:
    """Draw matrices (n,2,3) that map output to input coordinates (-1 to 1), as torch's affine_grid expects them.

    mirror: (n,) bool, which images to flip; None: at random.
    """
    angle = torch.deg2rad(how.rotate * _uniform(n, generator))  # (n,), as all of the following
    zoom = 1 + how.scale * _uniform(n, generator)
    if mirror is None:
        mirror = torch.rand(n, device=generator.device, generator=generator) < how.flip
    side = 1 - 2 * mirror.float()
    shift_x, shift_y = (2 * how.shift * _uniform(n, generator) for _ in "xy")  # the grid is 2 wide
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [torch.stack([side * cos, -sin, shift_x], 1), torch.stack([side * sin, cos, shift_y], 1)]  # (n,3) each
    return torch.stack(rows, 1)  # (n,2,3)


def _uniform(n: int, generator: torch.Generator) -> torch.Tensor:
    """Draw n uniform numbers from -1 to 1 on the device of the generator."""
    return 2 * torch.rand(n, device=generator.device, generator=generator) - 1


def rectangles(
    top: torch.Tensor, left: torch.Tensor, height: torch.Tensor, width: torch.Tensor, size: torch.Size
) -> torch.Tensor:
    """Make masks (N,1,H,W) that are 1 inside a rectangle and 0 outside.

    top, left, height, width: (N,), as fractions of the image. size: (H, W).
    """
    rows, columns = ((torch.arange(n, device=top.device) + 0.5) / n for n in size)
    inside_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])  # (N,H)
    inside_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])  # (N,W)
    return (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).float()


def _beta_shares(n: int, alpha: float, generator: torch.Generator) -> torch.Tensor:
    """Draw n shares from Beta(alpha, alpha) by random quantiles, because torch's sampler takes no generator."""
    quantiles = beta_quantiles(alpha, generator.device)
    return quantiles[torch.randint(len(quantiles), (n,), device=generator.device, generator=generator)]


@functools.lru_cache
def beta_quantiles(alpha: float, device: torch.device, n: int = 4096) -> torch.Tensor:
    """Compute n evenly spaced quantiles of Beta(alpha, alpha), (n,) float32."""
    return torch.as_tensor(beta.ppf((np.arange(n) + 0.5) / n, alpha, alpha), dtype=torch.float32, device=device)
