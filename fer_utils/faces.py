"""Faces in photos, webcam frames and videos: find them, crop them as FER2013's were, draw what a network says of them.

Images are (H,W,3) uint8, RGB. MediaPipe runs in a process of its own, as in landmarks.py, and torch is not needed here,
so that this process is small. Nothing in this module sends an image anywhere or keeps it.
"""

import contextlib
import csv
import functools
import io
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fer_utils.data import EMOTIONS, DataError
from fer_utils.landmarks import INSTALL, SIZE, LandmarksUnavailable, _prepare_worker, mediapipe_version

RANGES = ("short", "full")  # MediaPipe's two detectors: faces up to about 2 m from the camera, and up to about 5 m

# The detector's box in FER2013's own images: its side, and how far its middle lies below that of the image, both in
# sides of the image (medians over val, of which notebook 09 measures a part again). A crop of another photo is laid
# around the box likewise.
BOX_IN_CROP = {"short": (0.85, 0.07), "full": (0.87, 0.03)}

LARGEST_SIDE = 2048  # pixels; larger uploads are reduced
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
CODEC = "VP80"  # in .webm: every browser plays it
CYAN, DARK, WHITE = (0, 229, 255), (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True, eq=False)
class Face:
    """One face in an image; all lengths in pixels.

    box: left, top, width, height, as detected. score: how sure the detector is, 0 to 1, nan without a detector.
    square: left, top, side of the crop. points: x and y of eyes, nose tip, mouth and ears, (6,2); (0,2) without one.
    """

    box: tuple[float, float, float, float]
    score: float
    square: tuple[float, float, float]
    points: np.ndarray


Finder = Callable[..., list[Face]]  # finder(image, ranges=..., confidence=...)


# --- Find -------------------------------------------------------------------------------------------------------------


def start_finder() -> tuple[Finder, str]:
    """The face detector, and "". Where MediaPipe cannot be used: `whole_image`, and a sentence that says so and why."""
    try:
        finder = FaceFinder()
        finder(np.zeros((SIZE, SIZE, 3), np.uint8))
    except LandmarksUnavailable as error:
        return whole_image, f"Faces cannot be found: {error}. Each whole image is taken for one face."
    return finder, ""


def whole_image(image: np.ndarray, ranges: Sequence[str] = RANGES, confidence: float = 0.5) -> list[Face]:
    """Take the largest square in the middle of an image for a face; for where there is no detector."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return [Face((left, top, side, side), float("nan"), (left, top, side), np.empty((0, 2)))]


class FaceFinder:
    """MediaPipe's face detector, BlazeFace (Bazarevsky et al. 2019, arXiv:1907.05047), in a process of its own."""

    def __init__(self) -> None:
        """Raises LandmarksUnavailable when MediaPipe is not installed; the process starts with the first image."""
        mediapipe_version()
        context = multiprocessing.get_context("spawn")  # a fork would copy threads and GPU handles of the parent
        self._pool = ProcessPoolExecutor(1, context, _prepare_worker)

    def __call__(self, image: np.ndarray, ranges: Sequence[str] = RANGES, confidence: float = 0.5) -> list[Face]:
        """All faces in an image, from left to right; of boxes that overlap, the one with the highest score.

        ranges: some of RANGES. confidence: the lowest score. Raises LandmarksUnavailable when MediaPipe does not work.
        """
        try:
            found = self._pool.submit(_detect, np.ascontiguousarray(image), tuple(ranges)).result()
        except LandmarksUnavailable as error:
            raise LandmarksUnavailable(str(error)) from None  # without the worker's traceback
        except BrokenProcessPool:
            raise LandmarksUnavailable(f"MediaPipe crashed in its process; {INSTALL}") from None
        return without_doubles([face for face in found if face.score >= confidence])

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)


def without_doubles(faces: Sequence[Face]) -> list[Face]:
    """Faces from left to right; of two whose boxes overlap by more than 0.3, the one with the higher score."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(overlap(face.box, other.box) <= 0.3 for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: face.box[0])


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes (left, top, width, height) share, divided by the area that they cover together; 0 to 1."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def _detect(image: np.ndarray, ranges: tuple[str, ...]) -> list[Face]:
    """In the worker: what the detectors find, doubles included."""
    size = np.array(image.shape[1::-1])
    faces = []
    for name in ranges:
        for found in _detector(name).process(image).detections or ():
            box = found.location_data.relative_bounding_box
            left, top = np.array([box.xmin, box.ymin]) * size
            width, height = np.array([box.width, box.height]) * size
            points = np.array([(point.x, point.y) for point in found.location_data.relative_keypoints]) * size
            square = _square((left, top, width, height), *BOX_IN_CROP[name])
            faces.append(Face((left, top, width, height), float(found.score[0]), square, points))
    return faces


def _square(box: tuple[float, float, float, float], ratio: float, below: float) -> tuple[float, float, float]:
    """Left, top and side of the crop in which a box has its place in FER2013; ratio, below: as in BOX_IN_CROP."""
    left, top, width, height = box
    side = (width + height) / 2 / ratio
    return left + width / 2 - side / 2, top + height / 2 - below * side - side / 2, side


@functools.cache
def _detector(name: str) -> object:
    """One of MediaPipe's detectors, made once per process; weak finds are left out by the caller."""
    try:
        from mediapipe import solutions

        return solutions.face_detection.FaceDetection(model_selection=RANGES.index(name), min_detection_confidence=0.2)
    except Exception as error:  # broken installations fail in many ways
        raise LandmarksUnavailable(f"MediaPipe does not work ({type(error).__name__}: {error}); {INSTALL}") from None


# --- Crop and smooth --------------------------------------------------------------------------------------------------


def crop_faces(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """What a network gets to see: (n,48,48) uint8, gray; beyond its border an image goes on with its last pixels."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.array([_crop(gray, face.square) for face in faces], np.uint8).reshape(-1, SIZE, SIZE)


def _crop(gray: np.ndarray, square: tuple[float, float, float]) -> np.ndarray:
    side = max(1, round(square[2]))
    left, top = round(square[0]), round(square[1])
    rows = np.arange(top, top + side).clip(0, gray.shape[0] - 1)
    columns = np.arange(left, left + side).clip(0, gray.shape[1] - 1)
    # INTER_AREA averages all pixels of a large face; enlarging, it would show blocks.
    how = cv2.INTER_AREA if side > SIZE else cv2.INTER_CUBIC
    return cv2.resize(gray[np.ix_(rows, columns)], (SIZE, SIZE), interpolation=how)


class Smoother:
    """A moving average of each face's probabilities over the frames of a video.

    A face is taken for the one in the frame before whose box it overlaps most. One that is gone is forgotten at once.
    """

    def __init__(self, keep: float = 0.7) -> None:
        """keep: share of the average so far, 0 (no smoothing) to below 1."""
        self.keep = keep
        self._faces: Sequence[Face] = ()
        self._probs = np.empty((0, len(EMOTIONS)))

    def __call__(self, faces: Sequence[Face], probs: np.ndarray) -> np.ndarray:
        """Probabilities (n,7) of the n faces of the next frame -> their averages (n,7)."""
        averages = np.array(probs, float)
        for i, face in enumerate(faces):
            overlaps = [overlap(face.box, old.box) for old in self._faces]
            if overlaps and max(overlaps) > 0.3:
                before = self._probs[int(np.argmax(overlaps))]
                averages[i] = self.keep * before + (1 - self.keep) * averages[i]
        self._faces, self._probs = list(faces), averages
        return averages


# --- Draw -------------------------------------------------------------------------------------------------------------


def draw_faces(image: np.ndarray, faces: Sequence[Face], probs: np.ndarray | None = None) -> np.ndarray:
    """A copy of an image with a box and key points for each face, or the words "no face".

    Above a box stands the face's number and, from probs (n,7), its likeliest emotion; below, the detector's score.
    """
    picture = image.copy()
    scale = max(image.shape[:2]) / 640
    line = max(1, round(2 * scale))
    for i, face in enumerate(faces):
        left, top, width, height = (round(value) for value in face.box)
        cv2.rectangle(picture, (left, top), (left + width, top + height), CYAN, line)
        for x, y in face.points.round().astype(int).tolist():
            cv2.circle(picture, (x, y), 2 * line, CYAN, -1)
        _write(picture, label(i, probs), (left, top), scale)
        if not np.isnan(face.score):
            _write(picture, f"face {face.score:.2f}", (left, top + height + round(24 * scale)), scale)
    if not faces:
        _write(picture, "no face", (0, round(30 * scale)), scale)
    return picture


def label(i: int, probs: np.ndarray | None) -> str:
    """The number of face i, from 1, and its likeliest emotion."""
    return f"{i + 1}" if probs is None else f"{i + 1} {EMOTIONS[int(probs[i].argmax())]} {probs[i].max():.0%}"


def draw_bars(probs: np.ndarray, height: int, width: int = 200) -> np.ndarray:
    """A strip (height,width,3) with seven bars for each of the first three faces. probs: (n,7)."""
    strip = np.full((height, width, 3), 255, np.uint8)
    block, line = height // 3, height // 27
    for face, row in enumerate(probs[:3]):
        _write(strip, f"face {face + 1}", (0, face * block + line), line / 22)
        for i, (emotion, p) in enumerate(zip(EMOTIONS, row, strict=True)):
            top = face * block + (i + 1) * line + 2
            cv2.rectangle(strip, (80, top), (80 + round((width - 85) * float(p)), top + line - 4), (0, 114, 178), -1)
            cv2.putText(strip, emotion, (4, top + line - 5), cv2.FONT_HERSHEY_SIMPLEX, line / 40, DARK, 1, cv2.LINE_AA)
    return strip


def _write(picture: np.ndarray, text: str, corner: tuple[int, int], scale: float) -> None:
    """Text on a dark bar just above a corner, moved so that it stays inside the picture."""
    size, line = 0.5 * scale, max(1, round(scale))
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, line)
    x = int(np.clip(corner[0], 0, max(0, picture.shape[1] - width)))
    y = int(np.clip(corner[1] - below, height + below, picture.shape[0] - below))
    cv2.rectangle(picture, (x, y - height - below), (x + width, y + below), DARK, -1)
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, WHITE, line, cv2.LINE_AA)


# --- Files from anywhere ----------------------------------------------------------------------------------------------


def read_image(content: bytes, name: str) -> np.ndarray:
    """An uploaded file of any of FORMATS as an image (H,W,3), upright, its longer side at most LARGEST_SIDE.

    Transparent parts become white, gray levels of more than 8 bits are stretched from black to white, of an animation
    the first picture is taken. DataError names the file and says why it is no image, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.draft(None, (LARGEST_SIDE, LARGEST_SIDE))  # JPEG: decode no more pixels than needed
                picture = _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        millions = Image.MAX_IMAGE_PIXELS // 10**6
        raise DataError(f"{name} has more than {millions} megapixels; make it smaller and try again") from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is not an image that can be read here; take one of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError) as error:  # what Pillow's decoders raise
        raise DataError(f"{name} is truncated or damaged ({error}); save it again and try once more") from None
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return np.array(picture)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float32)
        low, high = values.min(), values.max()
        image = Image.fromarray((255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def annotate_video(
    source: Path,
    video: Path,
    table: Path,
    answer: Callable[[np.ndarray], tuple[list[Face], np.ndarray]],
    progress: Callable[[np.ndarray, float], bool] = lambda picture, done: False,
) -> int:
    """Write an annotated copy of a video (.webm, without sound) and a CSV with a row for each face of each frame.

    answer: frame -> its faces and their probabilities (n,7). progress: gets each annotated frame and the share that is
    done, 0 to 1; when it returns True, the work stops and nothing is written. One frame is in memory at a time.
    Returns the number of frames written, 0 when stopped. DataError when the file is not a video that can be read.
    """
    drafts = [path.with_name(f"unfinished.{path.name}") for path in (video, table)]
    video.parent.mkdir(parents=True, exist_ok=True)
    try:
        frames = _annotate(source, *drafts, answer, progress)
        if frames:
            for draft, path in zip(drafts, (video, table), strict=True):
                draft.replace(path)
        return frames
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _annotate(source: Path, video: Path, table: Path, answer: Callable, progress: Callable) -> int:
    capture = cv2.VideoCapture(str(source))
    rate, expected = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    rate = rate if 1 <= rate <= 240 else 25  # some files do not say
    writer, number = None, 0
    try:
        with table.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(["frame", "face", "left", "top", "width", "height", "score", *EMOTIONS])
            for number, frame in enumerate(_frames(capture), start=1):
                faces, probs = answer(frame)
                picture = draw_faces(frame, faces, probs)
                writer = writer or open_video(video, rate, picture.shape[1::-1])
                writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
                rows.writerows(_row(number, i, face, probs[i - 1]) for i, face in enumerate(faces, start=1))
                if progress(picture, min(1.0, number / max(expected, number))):
                    return 0
    finally:
        capture.release()
        if writer:
            writer.release()
    if not number:
        raise DataError(f"{source.name} is missing, or not a video that can be read here; take an .mp4, .webm or .avi")
    return number


def _row(frame: int, number: int, face: Face, probs: np.ndarray) -> list[object]:
    box, chances = (f"{value:.1f}" for value in face.box), (f"{p:.4f}" for p in probs)
    return [frame, number, *box, f"{face.score:.3f}", *chances]


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def open_video(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """What writes a .webm of `rate` frames a second, of (width, height) pixels; DataError when it cannot be written."""
    with _silence():  # OpenCV finds every codec unusual in a .webm, and says so on the screen
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODEC), rate, size)
    if not writer.isOpened():
        raise DataError(f"{path} cannot be written; look whether the folder may be written to and has room")
    return writer


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what C code writes to stderr off the screen."""
    screen = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)
