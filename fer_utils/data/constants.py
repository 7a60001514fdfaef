"""The constants of FER2013: its classes, splits, image size and official counts."""

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
SPLITS = ("train", "val", "test")
IMAGE_SIZE = 48  # pixels; images are square

# Images per class, in the order of EMOTIONS.
OFFICIAL_COUNTS = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "val": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}
