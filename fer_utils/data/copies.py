"""Images with exactly the same pixels, also across splits."""

import numpy as np

from fer_utils.data.dataset import FER2013

# --- Duplicates and crowd votes ---------------------------------------------------------------------------------------


def duplicate_groups(images: np.ndarray) -> np.ndarray:
    """Number images (N,...) so that the same number (N,) int64 means identical pixels; numbers count up from 0."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(image.tobytes(), len(numbers)) for image in images], np.int64)


def copies_in_train(dataset: FER2013) -> np.ndarray:
    """Return (N,) bool: images outside train whose exact pixels a model has also seen in train."""
    groups = duplicate_groups(dataset.images)
    return (dataset.split_ids != 0) & np.isin(groups, groups[dataset.where("train")])
