"""Regions of a face (eyes, nose, mouth) from its landmarks, the share of a heat map in each, and its spread."""

import numpy as np

from fer_utils.data.constants import IMAGE_SIZE

REGIONS = ("eyes", "nose", "mouth", "rest of face", "background")

# Each region except the background is an ellipse, with four numbers: the position of its center between the middle of
# the eyes (0) and the middle of the lip corners (1), then, in eye distances, a shift downward, half the width and half
# the height. "eyes" are two ellipses, one around each eye.
ELLIPSES = {
    "eyes": (0, -0.1, 0.42, 0.38),  # including the brows
    "mouth": (1, 0.1, 0.6, 0.4),
    "nose": (0.5, 0, 0.32, 0.4),
    "rest of face": (0.4, 0, 1.15, 1.5),
}


def region_masks(points: np.ndarray) -> np.ndarray:
    """Compute the regions of faces from their landmarks (N,4,2): (N,5,48,48) bool, in the order of REGIONS.

    The ellipses are tilted like the line through the eyes. Each pixel belongs to exactly one region: where ellipses
    overlap, to the first of them in ELLIPSES, and outside all ellipses to the background.
    """
    points = IMAGE_SIZE * points.astype(np.float32) - 0.5  # in pixels; 0 is the center of the first pixel
    left, right, middle = points[:, 0], points[:, 1], points[:, :2].mean(1)  # (N,2) each
    to_mouth = points[:, 2:].mean(1) - middle  # (N,2)
    line = right - left  # (N,2)
    distance = np.maximum(np.linalg.norm(line, axis=1, keepdims=True), 1)  # (N,1)
    along = np.where(np.abs(line).max(1, keepdims=True) >= 1, line / distance, np.float32([1, 0]))
    down = along[:, ::-1] * np.array([-1, 1], np.float32)
    masks = np.zeros((len(points), len(REGIONS), IMAGE_SIZE, IMAGE_SIZE), bool)
    free = np.ones((len(points), IMAGE_SIZE, IMAGE_SIZE), bool)
    for name, (towards_mouth, further, width, height) in ELLIPSES.items():
        inside = np.zeros_like(free)
        for start in (left, right) if name == "eyes" else (middle,):
            center = start + towards_mouth * to_mouth + further * distance * down
            inside |= _ellipse(center, along * width * distance, down * height * distance)
        masks[:, REGIONS.index(name)] = inside & free
        free &= ~inside
    masks[:, REGIONS.index("background")] = free
    return masks


def _ellipse(center: np.ndarray, half_width: np.ndarray, half_height: np.ndarray) -> np.ndarray:
    """Mark the pixels (N,48,48) inside ellipses; the arguments are vectors (N,2) in pixels: center and half axes."""
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)
    x, y = x - center[:, 0, None, None], y - center[:, 1, None, None]
    squared = np.zeros((len(center), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for axis in (half_width, half_height):
        length = (axis**2).sum(1)
        squared += ((x * axis[:, 0, None, None] + y * axis[:, 1, None, None]) / length[:, None, None]) ** 2
    return squared <= 1


def region_share(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Compute the share of each map's energy (its sum over all pixels) in each region: (N,R), nan for a map of zeros.

    maps: (N,48,48), not negative. masks: (N,R,48,48) bool. For comparison, a uniform map has the shares of the area,
    masks.mean((2, 3)).
    """
    energy = np.einsum("nhw,nrhw->nr", maps, masks, dtype=np.float64)
    total = maps.sum((1, 2), dtype=np.float64)
    return energy / np.where(total > 0, total, np.nan)[:, None]


def half_area(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Compute the smallest share of an area that holds half of a map's energy in it: (N,), nan for a map of zeros.

    maps: (N,48,48), not negative. masks: (N,48,48) bool, the area. It is 0.5 for a uniform map, and smaller the more
    the map is concentrated, wherever that is.
    """
    values = np.where(masks, maps, 0).reshape(len(maps), -1)  # (N,2304)
    energy = -np.sort(-values, axis=1)  # the brightest pixels first
    energy = energy.cumsum(1, dtype=np.float64)  # of the brightest 1, 2, ... pixels
    total = energy[:, -1:]
    pixels = 1 + (energy < total / 2 * (1 - 1e-6)).sum(1)  # rounding must not cost a pixel
    return np.where(total[:, 0] > 0, pixels / masks.sum((1, 2)), np.nan)


def align(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Compute matrices (N,2,3) with which augment.warp moves landmarks onto a template.

    points: (N,4,2), template: (4,2), both in [0,1]. The faces are only rotated, scaled and shifted, with the least
    squared distance of the four points (Umeyama 1991).
    """
    there, here = (2 * p[..., 0] - 1 + 1j * (2 * p[..., 1] - 1) for p in (points, template))  # as complex numbers
    centered = here - here.mean()
    turn = (there * centered.conj()).sum(1) / (abs(centered) ** 2).sum()
    shift = there.mean(1) - turn * here.mean()
    rows = [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]
    return np.array(rows, np.float32).transpose(2, 0, 1)
