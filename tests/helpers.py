"""Data for tests that need data but not faces."""

import numpy as np

from fer_utils.data import FER2013


def tiny_faces(per_class: int = 4, seed: int = 0, standard: bool = True) -> FER2013:
    """Random images, `per_class` of each emotion in each split, in the row order that FER2013 promises."""
    rng = np.random.default_rng(seed)
    n = 3 * 7 * per_class
    return FER2013(
        images=rng.integers(0, 256, (n, 48, 48)).astype(np.uint8),
        labels=np.tile(np.repeat(np.arange(7), per_class), 3),
        split_ids=np.repeat(np.arange(3), 7 * per_class).astype(np.int8),
        names=np.array([f"row {i}" for i in range(n)]),
        form="csv",
        fingerprint=f"{seed:016x}",
        notes=(),
        standard=standard,
    )


def toy_faces(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright bar whose height tells the class, learnable in a few steps: (n,48,48) uint8 and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, n)
    images = rng.integers(0, 60, (n, 48, 48)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[6 * label : 6 * label + 6] += 190
    return images, labels
