"""Find faces in any image with MediaPipe's face detector."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from fer_utils.data.constants import IMAGE_SIZE
from fer_utils.paths import ASSETS
from fer_utils.vision.mediapipe_process import (
    INSTALL,
    LandmarksUnavailable,
    does_not_work,
    mediapipe_version,
    start_workers,
)

RANGES = ("short", "full")  # MediaPipe's two detectors: for faces up to about 2 m and up to about 5 m from the camera

# The weights of both detectors, which MediaPipe 0.10.21 brings and later releases do not, and the lowest score at which
# that release reports a face. All in assets/mediapipe/ is MediaPipe's, under the Apache License 2.0.
WEIGHTS = {
    "short": ("face_detection_short_range.tflite", 0.5),
    "full": ("face_detection_full_range_sparse.tflite", 0.6),
}

# The detector's box in images of FER2013: its side, and how far its center lies below the center of the image, both as
# fractions of the side of the image. These are medians over val; notebook 09 checks them on a part of val. Crops of
# other photos are placed around the box in the same way.
BOX_IN_CROP = {"short": (0.85, 0.07), "full": (0.87, 0.03)}


@dataclass(frozen=True, eq=False)
class Face:
    """One face in an image; all lengths in pixels."""

    box: tuple[float, float, float, float]  # left, top, width, height, as detected
    score: float  # confidence of the detector, 0 to 1; nan without a detector
    square: tuple[float, float, float]  # left, top, side of the crop
    points: np.ndarray  # (6,2): x and y of eyes, nose tip, mouth and ears; (0,2) without a detector

    @property
    def is_small(self) -> bool:
        """Whether the crop has fewer than 48x48 pixels, the size of the images in FER2013."""
        return bool(self.square[2] < IMAGE_SIZE)


Detection = tuple[tuple[float, float, float, float], float, list[tuple[float, float]]]  # box in pixels, score, points
Detector = Callable[[np.ndarray], Iterator[Detection]]  # points are fractions of the width and height of the image
Finder = Callable[..., list[Face]]  # finder(image, ranges=..., confidence=...)


def start_finder() -> tuple[Finder, str]:
    """Start the face detector; returns it and "".

    If MediaPipe cannot be used, returns `whole_image` and a sentence that explains why.
    """
    try:
        finder = FaceFinder()
        finder(np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
    except LandmarksUnavailable as error:
        return whole_image, f"Faces cannot be found: {error}. The whole image counts as one face instead."
    return finder, ""


def whole_image(image: np.ndarray, ranges: Sequence[str] = RANGES, confidence: float = 0.5) -> list[Face]:
    """Return the largest square in the center of an image as its only face; replaces a missing detector."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return [Face((left, top, side, side), float("nan"), (left, top, side), np.empty((0, 2)))]


class FaceFinder:
    """MediaPipe's face detector BlazeFace (Bazarevsky et al. 2019, arXiv:1907.05047) in its own process."""

    def __init__(self) -> None:
        """Raise LandmarksUnavailable if MediaPipe is not installed; the process starts with the first image."""
        mediapipe_version()
        self._pool = start_workers(1)

    def __call__(self, image: np.ndarray, ranges: Sequence[str] = RANGES, confidence: float = 0.5) -> list[Face]:
        """Find all faces in an image (H,W,3) uint8 RGB, from left to right; of overlapping boxes, the best one.

        ranges: one or both of RANGES. confidence: lowest score; below those in WEIGHTS it changes nothing.
        LandmarksUnavailable if MediaPipe does not work.
        """
        try:
            faces = self._pool.submit(_detect, np.ascontiguousarray(image), tuple(ranges)).result()
        except LandmarksUnavailable as error:
            raise LandmarksUnavailable(str(error)) from None  # without the worker's traceback
        except BrokenProcessPool:
            raise LandmarksUnavailable(f"MediaPipe crashed in its process; {INSTALL}") from None
        return without_doubles([face for face in faces if face.score >= confidence])

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(kill_workers=True)


def without_doubles(faces: Sequence[Face]) -> list[Face]:
    """Sort faces from left to right; of two whose boxes overlap by more than 0.3, keep the one with the higher score.

    This is non-maximum suppression.
    """
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(overlap(face.box, other.box) <= 0.3 for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: face.box[0])


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute the intersection over union (IoU) of two boxes (left, top, width, height), 0 to 1."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def _detect(image: np.ndarray, ranges: tuple[str, ...]) -> list[Face]:
    """Return the faces that the detectors find, duplicates included; runs in the worker process."""
    size = np.array(image.shape[1::-1])
    return [
        Face(box, score, crop_square(box, *BOX_IN_CROP[name]), np.array(points) * size)
        for name in ranges
        for box, score, points in _detector(name)(image)
    ]


def crop_square(box: tuple[float, float, float, float], ratio: float, below: float) -> tuple[float, float, float]:
    """Compute left, top and side of the crop around a box, framed as in FER2013; ratio, below: as in BOX_IN_CROP."""
    left, top, width, height = box
    side = (width + height) / 2 / ratio
    return left + width / 2 - side / 2, top + height / 2 - below * side - side / 2, side


@functools.cache
def _detector(name: str) -> Detector:
    """Make one of MediaPipe's detectors, once per process."""
    try:
        import mediapipe

        return _with_solutions(name) if hasattr(mediapipe, "solutions") else _with_tasks(name)
    except Exception as error:  # broken installations fail in many ways
        raise does_not_work(error) from None


def _with_solutions(name: str) -> Detector:
    """Make a detector with the interface that MediaPipe had up to 0.10.21; it ignores other lowest scores."""
    from mediapipe import solutions

    detector = solutions.face_detection.FaceDetection(model_selection=RANGES.index(name))

    def detect(image: np.ndarray) -> Iterator[Detection]:
        height, width = image.shape[:2]
        for detection in detector.process(image).detections or ():
            place = detection.location_data
            box = place.relative_bounding_box
            pixels = box.xmin * width, box.ymin * height, box.width * width, box.height * height
            yield pixels, detection.score[0], [(point.x, point.y) for point in place.relative_keypoints]

    return detect


def _with_tasks(name: str) -> Detector:
    """Make a detector with the interface that MediaPipe has today; it rounds boxes down to whole pixels."""
    from mediapipe import Image, ImageFormat
    from mediapipe.tasks.python import BaseOptions, vision

    file, lowest = WEIGHTS[name]
    base = BaseOptions(model_asset_path=str(ASSETS / "mediapipe" / file))
    options = vision.FaceDetectorOptions(base, min_detection_confidence=lowest)
    detector = vision.FaceDetector.create_from_options(options)

    def detect(image: np.ndarray) -> Iterator[Detection]:
        for detection in detector.detect(Image(ImageFormat.SRGB, image)).detections:
            box = detection.bounding_box
            pixels = box.origin_x, box.origin_y, box.width, box.height
            yield pixels, detection.categories[0].score, [(point.x, point.y) for point in detection.keypoints]

    return detect
