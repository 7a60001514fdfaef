"""FER2013 and everything around it: readers, cache, exact copies, crowd votes, RAF-DB and the embedded sample."""

from fer_utils.data.constants import EMOTIONS, IMAGE_SIZE, OFFICIAL_COUNTS, SPLITS
from fer_utils.data.copies import copies_in_train, duplicate_groups
from fer_utils.data.dataset import FER2013, FaceDataset
from fer_utils.data.fer2013 import load_data, load_fer2013

__all__ = [
    "EMOTIONS",
    "FER2013",
    "IMAGE_SIZE",
    "OFFICIAL_COUNTS",
    "SPLITS",
    "FaceDataset",
    "copies_in_train",
    "duplicate_groups",
    "load_data",
    "load_fer2013",
]
