"""Annotate videos frame by frame, and smooth probabilities over frames."""

import contextlib
import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from fer_utils.data.constants import EMOTIONS
from fer_utils.errors import DataError
from fer_utils.vision.detector import Face, overlap
from fer_utils.vision.photos import DARK, WHITE

CODEC = "VP80"  # every browser plays it in a .webm file
# Emotion -> color of its box (RGB), and of the text on it; the colors are those of the demo's page, see demo/app.css.
COLORS = {
    "angry": ((172, 26, 12), WHITE),
    "disgust": ((61, 155, 87), DARK),
    "fear": ((142, 52, 179), WHITE),
    "happy": ((200, 131, 4), DARK),
    "sad": ((26, 90, 252), WHITE),
    "surprise": ((26, 82, 98), WHITE),
    "neutral": ((141, 146, 149), DARK),
}


class Smoother:
    """Averages the probabilities of each face over the frames of a video (exponential moving average).

    A face is matched to the face of the previous frame whose box it overlaps most. A face without a match starts anew.
    """

    def __init__(self, keep: float = 0.7) -> None:
        """keep: weight of the average so far, from 0 (no smoothing) to below 1."""
        self.keep = keep
        self._faces: Sequence[Face] = ()
        self._probs = np.empty((0, len(EMOTIONS)))

    def __call__(self, faces: Sequence[Face], probs: np.ndarray) -> np.ndarray:
        """Add the next frame with n faces and probabilities (n,7); returns the averages (n,7)."""
        averages = np.array(probs, float)
        for i, face in enumerate(faces):
            overlaps = [overlap(face.box, old.box) for old in self._faces]
            if overlaps and max(overlaps) > 0.3:
                before = self._probs[int(np.argmax(overlaps))]
                averages[i] = self.keep * before + (1 - self.keep) * averages[i]
        self._faces, self._probs = list(faces), averages
        return averages


def annotate_video(
    source: Path,
    video: Path,
    table: Path,
    answer: Callable[[np.ndarray], tuple[list[Face], np.ndarray]],
    progress: Callable[[np.ndarray, float], bool] = lambda picture, done: False,
) -> int:
    """Write an annotated copy of a video (.webm, without sound) and a CSV with a row for each face of each frame.

    answer: returns the faces of a frame and their probabilities (n,7). progress: called with each annotated frame and
    the share that is done, 0 to 1; if it returns True, the work stops and nothing is written. Only one frame is in
    memory at a time. Returns the number of frames written, 0 after a stop. DataError if the file is not a readable
    video.
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
    rate = rate if 1 <= rate <= 240 else 25  # the rate is missing in some files
    writer, number = None, 0
    try:
        with table.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(["frame", "seconds", "face", "left", "top", "width", "height", "score", *EMOTIONS])
            for number, frame in enumerate(_frames(capture), start=1):
                faces, probs = answer(frame)
                picture = draw_predictions(frame, faces, probs)
                writer = writer or open_video(video, rate, picture.shape[1::-1])
                writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
                rows.writerows(_row(number, rate, i, face, probs[i - 1]) for i, face in enumerate(faces, start=1))
                if progress(picture, min(1.0, number / max(expected, number))):
                    return 0
    finally:
        capture.release()
        if writer:
            writer.release()
    if not number:
        raise DataError(f"{source.name} is missing, or not a video that can be read here; use an .mp4, .webm or .avi")
    return number


def draw_predictions(frame: np.ndarray, faces: Sequence[Face], probs: np.ndarray) -> np.ndarray:
    """Draw a box around each face on a copy of a frame (H,W,3) RGB, with the likeliest emotion from probs (n,7)."""
    picture = frame.copy()
    line = max(2, round(max(frame.shape[:2]) / 200))
    for i, (face, row) in enumerate(zip(faces, probs, strict=True), start=1):
        emotion = EMOTIONS[int(row.argmax())]
        text = f"{emotion} {row.max():.0%}" if len(faces) == 1 else f"{i} {emotion} {row.max():.0%}"
        left, top, width, height = (round(value) for value in face.box)
        cv2.rectangle(picture, (left, top), (left + width, top + height), COLORS[emotion][0], line)
        _write_label(picture, text, (left, top), line / 3, *COLORS[emotion])
    return picture


def _write_label(
    picture: np.ndarray, text: str, corner: tuple[int, int], size: float, color: Sequence[int], ink: Sequence[int]
) -> None:
    """Write a text on a bar above a corner (x, y), or inside the picture if there is no room above."""
    thickness = max(1, round(2 * size))
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
    x = int(np.clip(corner[0], 0, max(0, picture.shape[1] - width - 2 * below)))
    y = max(corner[1], height + 2 * below)
    cv2.rectangle(picture, (x, y - height - 2 * below), (x + width + 2 * below, y), color, -1)
    cv2.putText(picture, text, (x + below, y - below), cv2.FONT_HERSHEY_SIMPLEX, size, ink, thickness, cv2.LINE_AA)


def _row(frame: int, rate: float, number: int, face: Face, probs: np.ndarray) -> list[object]:
    box, chances = (f"{value:.1f}" for value in face.box), (f"{p:.4f}" for p in probs)
    return [frame, f"{(frame - 1) / rate:.3f}", number, *box, f"{face.score:.3f}", *chances]


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def open_video(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """Open a .webm file for writing; DataError if it cannot be written.

    rate: frames per second. size: width and height in pixels.
    """
    with _silence():  # OpenCV warns about every codec in a .webm file
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODEC), rate, size)
    if not writer.isOpened():
        raise DataError(f"{path} cannot be written; check the permissions of the folder and the free disk space")
    return writer


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hide messages that C code writes to stderr."""
    screen = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)
