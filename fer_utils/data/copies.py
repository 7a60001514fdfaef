"""Find images with exactly the same pixels, also across splits."""

import numpy as np

from fer_utils.data.dataset import FaceDataset


def copies_in_train(dataset: FaceDataset) -> np.ndarray:
    """Return (N,) bool: the images outside train whose exact pixels also occur in train."""
    groups = duplicate_groups(dataset.images)
    return (dataset.split_ids != 0) & np.isin(groups, groups[dataset.where("train")])


def duplicate_groups(images: np.ndarray) -> np.ndarray:
    """Number images (N,...) so that identical pixels get the same number, counted from 0; returns (N,) int64."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(image.tobytes(), len(numbers)) for image in images], np.int64)
