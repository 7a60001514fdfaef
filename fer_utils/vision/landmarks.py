"""Find four landmarks of a face with MediaPipe, the eye centers and lip corners; a mask marks failures.

MediaPipe's face mesh (Kartynnik et al. 2019, arXiv:1907.06724; with irises: Grishchenko et al. 2020, arXiv:2006.10962)
was designed for photographs, not for 48x48 pixels. Every image is therefore padded and enlarged first. If MediaPipe
finds no face, the image is prepared in a few other ways. MediaPipe runs only in worker processes, so a crash does not
end the notebook.
"""

import functools
import hashlib
import io
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fer_utils.data.constants import IMAGE_SIZE
from fer_utils.data.dataset import FER2013
from fer_utils.errors import DataError
from fer_utils.paths import atomic_write
from fer_utils.vision.mediapipe_process import (
    INSTALL,
    LandmarksUnavailable,
    does_not_work,
    mediapipe_version,
    start_workers,
)

POINTS = ("left_eye", "right_eye", "left_lip_corner", "right_lip_corner")  # left: in the left half of the image
CHUNK = 500  # images that are labeled and saved together

# Points of the mesh whose mean is the eye center, for the eye on the left and on the right of the image.
EYES = {
    "contour": (
        (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
        (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
    ),
    "corners": ((33, 133), (263, 362)),
    "iris": ((468, 469, 470, 471, 472), (473, 474, 475, 476, 477)),
}
LIP_CORNERS = ((61,), (291,))


@dataclass(frozen=True)
class Attempt:
    """One way to prepare an image for MediaPipe."""

    pad: int = 16  # pixels added on every side, before enlarging
    enlarge: int = 6  # factor
    border: str = "black"  # color of the padding: "black", or "edge" to repeat the outermost pixels
    contrast: bool = False  # whether to enhance the contrast locally (CLAHE; Zuiderveld 1994)
    mirrored: bool = False  # whether to show the mirror image

    def __str__(self) -> str:
        """Describe the attempt in a few words."""
        words = [f"{self.border} {self.pad} px, x{self.enlarge}"]
        return ", ".join(words + [name for name in ("contrast", "mirrored") if getattr(self, name)])

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Prepare an image (48,48) uint8 for MediaPipe: (S,S,3) uint8."""
        image = np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image
        if self.contrast:
            image = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(4, 4)).apply(image)
        border = {"black": cv2.BORDER_CONSTANT, "edge": cv2.BORDER_REPLICATE}[self.border]
        image = cv2.copyMakeBorder(image, self.pad, self.pad, self.pad, self.pad, border)
        image = cv2.resize(image, None, fx=self.enlarge, fy=self.enlarge, interpolation=cv2.INTER_CUBIC)
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)

    def restore(self, points: np.ndarray) -> np.ndarray:
        """Convert points (4,2) from fractions of the prepared image to fractions of the original image."""
        points = (points * (IMAGE_SIZE + 2 * self.pad) - self.pad) / IMAGE_SIZE
        return mirror_points(points) if self.mirrored else points


# Tried in this order until a face is found. MediaPipe's thresholds stay at 0.5; below, it mistakes more text for faces.
ATTEMPTS = (
    Attempt(),
    Attempt(mirrored=True),
    Attempt(pad=8),
    Attempt(pad=24),
    Attempt(pad=24, contrast=True),
)


@dataclass(frozen=True, eq=False)
class Landmarks:
    """The landmarks of N faces; no image is dropped."""

    # (N,4,2) float32: x and y of POINTS in [0,1] of width and height, nan without a face. Points that MediaPipe places
    # outside the image are moved to its border.
    points: np.ndarray
    mask: np.ndarray  # (N,) bool: whether a face was detected
    method: np.ndarray  # (N,) str: the attempt that succeeded, "" if none did
    fingerprint: str  # of the images, see `image_fingerprint`
    mediapipe: str  # version of MediaPipe

    def save(self, path: Path) -> None:
        """Write one npz file, completely or not at all; the same landmarks give the same bytes."""
        _write_arrays(path, **vars(self))


def load_landmarks(path: Path, dataset: FER2013) -> Landmarks:
    """Load the landmarks of a data set from a file that `Landmarks.save` wrote.

    DataError if the file is missing or damaged, or belongs to other images.
    """
    if not path.exists():
        raise DataError(f"{path.name} is not in {path.parent}; run the notebook 02_landmark_labelling first")
    arrays = _read_arrays(path, ("points", "mask", "method", "fingerprint", "mediapipe"))
    if arrays is None:
        raise DataError(f"{path} is damaged; run the notebook 02_landmark_labelling again to rebuild it")
    landmarks = Landmarks(**arrays | {name: str(arrays[name]) for name in ("fingerprint", "mediapipe")})
    expected = image_fingerprint(dataset.images)
    if landmarks.fingerprint != expected:
        raise DataError(
            f"{path} belongs to other images (fingerprint {landmarks.fingerprint}, here {expected}); "
            "run the notebook 02_landmark_labelling on this data"
        )
    return landmarks


def image_fingerprint(images: np.ndarray) -> str:
    """Return 16 hex digits that identify images (N,48,48) uint8 and their order; landmarks depend only on these."""
    return hashlib.blake2b(np.ascontiguousarray(images), digest_size=8).hexdigest()


def mirror_points(points: np.ndarray) -> np.ndarray:
    """Mirror points (...,4,2) of a face: x becomes 1 - x, and left and right points change places."""
    return points[..., [1, 0, 3, 2], :] * np.array([-1, 1], points.dtype) + np.array([1, 0], points.dtype)


def label_landmarks(
    images: np.ndarray,
    workers: int | None = None,
    cache: Path | None = None,
    progress: Callable[[str], object] = print,
    attempts: Sequence[Attempt] = ATTEMPTS,
    eyes: str = "contour",
) -> Landmarks:
    """Find the landmarks of images (N,48,48) uint8; the result does not depend on the number of workers.

    workers: number of processes, by default one per core. cache: folder for finished chunks of images, from which an
    interrupted run resumes. progress: called with about ten lines of text. eyes: definition of the eye center, a key of
    EYES.

    Raises LandmarksUnavailable if MediaPipe cannot be used, DataError if no image has a face.
    """
    version = mediapipe_version()
    method = [*map(str, attempts), ""]
    chunks = {start: images[start : start + CHUNK] for start in range(0, len(images), CHUNK)}
    files = {start: cache and cache / f"{_key(chunk, version, attempts, eyes)}.npz" for start, chunk in chunks.items()}
    done = {start: part for start, file in files.items() if file and (part := _read_chunk(file, len(chunks[start])))}
    meter = _Meter(len(images), progress, earlier=[attempt_ids for _, attempt_ids in done.values()])
    waiting = {start: chunk for start, chunk in chunks.items() if start not in done}
    for start, (points, attempt_ids) in _run_workers(waiting, workers or _cores(), tuple(attempts), eyes):
        if files[start]:
            _write_arrays(files[start], points=points, attempt_ids=attempt_ids)
        done[start] = points, attempt_ids
        meter.add(attempt_ids)
    points, attempt_ids = (np.concatenate(parts) for parts in zip(*(done[start] for start in chunks), strict=True))
    mask = attempt_ids >= 0
    if not mask.any():
        raise DataError(f"no face was found in any of the {len(images):,} images; use pictures of faces from the front")
    return Landmarks(points, mask, np.array(method)[attempt_ids], image_fingerprint(images), version)


# --- Chunks, workers, progress ----------------------------------------------------------------------------------------


def _key(chunk: np.ndarray, *settings: object) -> str:
    """Hash everything that the landmarks of a chunk depend on: images, settings, and this module."""
    digest = hashlib.blake2b(np.ascontiguousarray(chunk), digest_size=8)
    digest.update(repr(settings).encode() + Path(__file__).read_bytes())
    return digest.hexdigest()


def _read_chunk(path: Path, n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Read the points (n,4,2) and attempt_ids (n,) of a finished chunk; None if it has to be labeled (again)."""
    arrays = _read_arrays(path, ("points", "attempt_ids"))
    return (arrays["points"], arrays["attempt_ids"]) if arrays and len(arrays["attempt_ids"]) == n else None


def _run_workers(
    chunks: dict[int, np.ndarray], workers: int, attempts: tuple[Attempt, ...], eyes: str
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Label chunks in worker processes; yields the key and the result of each chunk as soon as it is ready."""
    if not chunks:
        return
    pool = start_workers(min(workers, len(chunks)))
    try:
        jobs = {pool.submit(_label_chunk, chunk, attempts, eyes): start for start, chunk in chunks.items()}
        for job in as_completed(jobs):
            yield jobs[job], job.result()
    except LandmarksUnavailable as error:
        raise LandmarksUnavailable(str(error)) from None  # without the worker's traceback
    except BrokenProcessPool:
        raise LandmarksUnavailable(
            "MediaPipe crashed in a worker process, or ran out of memory; run again with fewer workers, and if that "
            f"does not help, {INSTALL}"
        ) from None
    finally:
        pool.shutdown(kill_workers=True)


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Meter:
    """Reports the progress of labeling about ten times."""

    def __init__(self, total: int, say: Callable[[str], object], earlier: Iterable[np.ndarray]) -> None:
        """earlier: attempt_ids (n,) of each chunk that an earlier run has labeled."""
        self.total, self.say = total, say
        self.done = self.with_face = 0
        for attempt_ids in earlier:
            self._count(attempt_ids)
        self.started, self.at_start, self.at_last_line = time.monotonic(), self.done, self.done
        if self.done:
            say(f"{self.done:,}/{total:,} were labeled by an earlier run")

    def add(self, attempt_ids: np.ndarray) -> None:
        """Count a chunk; report when another tenth is complete."""
        self._count(attempt_ids)
        if self.done - self.at_last_line < self.total / 10 and self.done < self.total:
            return
        self.at_last_line = self.done
        seconds_each = (time.monotonic() - self.started) / (self.done - self.at_start)
        left = seconds_each * (self.total - self.done)
        left_text = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        rate = self.with_face / self.done
        self.say(f"labeled {self.done:,}/{self.total:,}  with a face {rate:.1%}  left {left_text}")

    def _count(self, attempt_ids: np.ndarray) -> None:
        self.done += len(attempt_ids)
        self.with_face += int((attempt_ids >= 0).sum())


def _label_chunk(images: np.ndarray, attempts: tuple[Attempt, ...], eyes: str) -> tuple[np.ndarray, np.ndarray]:
    """Find points (n,4,2) float32 and the attempt that succeeded, attempt_ids (n,) int8, -1 for none.

    Runs in a worker process.
    """
    points = np.full((len(images), len(POINTS), 2), np.nan, np.float32)
    attempt_ids = np.full(len(images), -1, np.int8)
    for i, image in enumerate(images):
        for number, attempt in enumerate(attempts):
            face = _find_points(image, attempt, eyes)
            if face is not None:
                points[i], attempt_ids[i] = face, number
                break
    return points, attempt_ids


def _find_points(image: np.ndarray, attempt: Attempt, eyes: str) -> np.ndarray | None:
    """Find the points (4,2) in an image (48,48) with MediaPipe; None without a face."""
    faces = _face_mesh().process(attempt.prepare(image)).multi_face_landmarks
    if not faces:
        return None
    mesh = np.array([(point.x, point.y) for point in faces[0].landmark])  # (478,2)
    points = np.stack([mesh[list(numbers)].mean(0) for numbers in (*EYES[eyes], *LIP_CORNERS)])
    return attempt.restore(points).clip(0, 1)


@functools.cache
def _face_mesh() -> object:
    """Make MediaPipe's face mesh for single images, once per process."""
    try:
        import mediapipe

        if hasattr(mediapipe, "solutions"):
            # refine_landmarks: the mesh of 2020, which has irises and is more accurate.
            options = {"static_image_mode": True, "max_num_faces": 1, "refine_landmarks": True}
            return mediapipe.solutions.face_mesh.FaceMesh(**options)
    except Exception as error:  # broken installations fail in many ways
        raise does_not_work(error) from None
    raise LandmarksUnavailable(
        f"MediaPipe {mediapipe_version()} no longer brings the face mesh; install mediapipe==0.10.21 (Python 3.10 to "
        "3.12), or leave notebook 02 out and use a published reports/derived/landmarks.npz"
    )


# --- Files ------------------------------------------------------------------------------------------------------------


def _write_arrays(path: Path, **arrays: object) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write(path, buffer.getbuffer())


def _read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Read arrays from an npz file; None if it is missing or damaged, or lacks one of them."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error):
        return None
