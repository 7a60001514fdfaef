"""FER2013 in memory: images, labels and splits as arrays."""

from dataclasses import dataclass

import numpy as np

from fer_utils.data.constants import SPLITS


@dataclass(frozen=True, eq=False)
class FER2013:
    """Labeled faces, ordered train, val, test; inside a split by CSV row, or by (class, file name).

    images (N,48,48) uint8; labels (N,) int64, positions in EMOTIONS; split_ids (N,) int8, positions in SPLITS;
    names (N,) str: the path inside the zip or folder, "row 17" of a CSV (0 is the first), or "sample 17";
    form: "csv", "icml_csv", "zip", "folder" or "sample"; fingerprint: 16 hex digits of images, labels and split_ids;
    notes: what a reader of any result should know; standard: whether every class count is the official one.
    """

    images: np.ndarray
    labels: np.ndarray
    split_ids: np.ndarray
    names: np.ndarray
    form: str
    fingerprint: str
    notes: tuple[str, ...]
    standard: bool

    def where(self, split: str) -> np.ndarray:
        """Return the row numbers (n,) of a split."""
        return np.flatnonzero(self.split_ids == SPLITS.index(split))

    def subset(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the images (n,48,48) and labels (n,) of a split."""
        rows = self.where(split)
        return self.images[rows], self.labels[rows]
