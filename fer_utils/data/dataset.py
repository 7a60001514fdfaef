"""Labeled faces in memory: images, labels and splits as arrays."""

from dataclasses import dataclass

import numpy as np

from fer_utils.data.constants import SPLITS


@dataclass(frozen=True, eq=False)
class FaceDataset:
    """Faces with one of seven emotions each. Rows are ordered train, val, test."""

    images: np.ndarray  # (N,48,48) uint8, gray; of RAF-DB (N,3,100,100) uint8, RGB
    labels: np.ndarray  # (N,) int64: positions in EMOTIONS
    split_ids: np.ndarray  # (N,) int8: positions in SPLITS
    names: np.ndarray  # (N,) str: the source of each image, such as "row 17" or its file
    form: str  # of the source: "csv", "icml_csv", "zip", "folder", "sample" or "rafdb"
    fingerprint: str  # 16 hex digits of images, labels and split_ids
    notes: tuple[str, ...]  # what a reader of any result should know about the data
    standard: bool  # whether all counts are the official ones

    def where(self, split: str) -> np.ndarray:
        """Return the row numbers (n,) of a split."""
        return np.flatnonzero(self.split_ids == SPLITS.index(split))

    def subset(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the images (n,...) and labels (n,) of a split."""
        rows = self.where(split)
        return self.images[rows], self.labels[rows]


class FER2013(FaceDataset):
    """FER2013, or the embedded sample in its place: gray images (N,48,48).

    Inside a split, rows follow the CSV, or are sorted by class and file name. A name is the path inside the zip or
    folder, "row 17" of a CSV (0 is the first below the header), or "sample 17".
    """
