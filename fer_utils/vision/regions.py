"""Regions of a face (eyes, nose, mouth) from its landmarks, and how much of a map falls into each."""

import numpy as np

from fer_utils.data.constants import IMAGE_SIZE

REGIONS = ("eyes", "nose", "mouth", "rest of face", "background")

# Each region but the last is an ellipse: how far its center lies from the middle of the eyes (0) towards that of the
# lip corners (1), then, in eye distances: how far further down, and half its width and height. The eyes are two.
ELLIPSES = {
    "eyes": (0, -0.1, 0.42, 0.38),  # with the brows
    "mouth": (1, 0.1, 0.6, 0.4),
    "nose": (0.5, 0, 0.32, 0.4),
    "rest of face": (0.4, 0, 1.15, 1.5),
}


# --- Regions ----------------------------------------------------------------------------------------------------------


def region_masks(points: np.ndarray) -> np.ndarray:
    """The regions of faces from their landmarks (N,4,2): (N,5,48,48) bool, in the order of REGIONS.

    The ellipses of ELLIPSES, tilted like the line through the eyes. Each pixel belongs to one region: where ellipses
    overlap, to the one named first there, and to the background if it is in none.
    """
    points = IMAGE_SIZE * points.astype(np.float32) - 0.5  # in pixels; 0 is the middle of the first one
    left, right, middle = points[:, 0], points[:, 1], points[:, :2].mean(1)
    to_mouth = points[:, 2:].mean(1) - middle
    line = right - left
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
    """Pixels (N,48,48) inside ellipses; all arguments (N,2) vectors in pixels, the last two the half axes."""
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)
    x, y = x - center[:, 0, None, None], y - center[:, 1, None, None]
    squared = np.zeros((len(center), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for axis in (half_width, half_height):
        length = (axis**2).sum(1)
        squared += ((x * axis[:, 0, None, None] + y * axis[:, 1, None, None]) / length[:, None, None]) ** 2
    return squared <= 1


def region_share(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of each map's energy, its sum over all pixels, that lies in each region; nan for a map of zeros.

    maps: (N,48,48), not negative. masks: (N,R,48,48) bool. Returns (N,R). What even maps would have, the share of the
    area, is masks.mean((2, 3)).
    """
    energy = np.einsum("nhw,nrhw->nr", maps, masks, dtype=np.float64)
    total = maps.sum((1, 2), dtype=np.float64)
    return energy / np.where(total > 0, total, np.nan)[:, None]


def align(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Matrices (N,2,3) with which augment.warp moves faces so that their landmarks come to lie on a template's.

    points: (N,4,2), template: (4,2), in [0,1]. Only turned, scaled and shifted, so that the four points fit best in
    the sense of least squares (Umeyama 1991).
    """
    there, here = (2 * p[..., 0] - 1 + 1j * (2 * p[..., 1] - 1) for p in (points, template))  # as complex numbers
    centered = here - here.mean()
    turn = (there * centered.conj()).sum(1) / (abs(centered) ** 2).sum()
    shift = there.mean(1) - turn * here.mean()
    rows = [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]
    return np.array(rows, np.float32).transpose(2, 0, 1)
