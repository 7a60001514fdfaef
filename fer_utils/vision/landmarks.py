"""The four key points of a face, found by MediaPipe: eye centers and lip corners, with a mask for faces not found.

MediaPipe's face mesh (Kartynnik et al. 2019, arXiv:1907.06724; with irises: Grishchenko et al. 2020, arXiv:2006.10962)
was made for photographs, not for 48x48 pixels. So every image is padded and enlarged first, and what is not found at
the first attempt gets a few others. MediaPipe runs in worker processes only: what goes wrong there, goes wrong there.
"""

import functools
import hashlib
import io
import multiprocessing
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fer_utils.data.constants import IMAGE_SIZE
from fer_utils.data.dataset import FER2013
from fer_utils.errors import DataError
from fer_utils.paths import atomic_write
from fer_utils.vision.mediapipe_process import INSTALL, LandmarksUnavailable, mediapipe_version, prepare_worker

POINTS = ("left_eye", "right_eye", "left_lip_corner", "right_lip_corner")  # left: on the left of the image
CHUNK = 500  # images that are labeled, and saved, in one go

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
    """One way to show a face to MediaPipe.

    pad: pixels added on every side before the image is enlarged `enlarge` times. border: "black", or "edge" to repeat
    the outermost pixels. contrast: stretch it locally (CLAHE; Zuiderveld 1994). mirrored: show the mirror image.
    """

    pad: int = 16
    enlarge: int = 6
    border: str = "black"
    contrast: bool = False
    mirrored: bool = False

    def __str__(self) -> str:
        """What distinguishes it, in a few words."""
        words = [f"{self.border} {self.pad} px, x{self.enlarge}"]
        return ", ".join(words + [name for name in ("contrast", "mirrored") if getattr(self, name)])

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Image (48,48) uint8 -> what MediaPipe sees, (S,S,3) uint8."""
        image = np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image
        if self.contrast:
            image = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(4, 4)).apply(image)
        border = {"black": cv2.BORDER_CONSTANT, "edge": cv2.BORDER_REPLICATE}[self.border]
        image = cv2.copyMakeBorder(image, self.pad, self.pad, self.pad, self.pad, border)
        image = cv2.resize(image, None, fx=self.enlarge, fy=self.enlarge, interpolation=cv2.INTER_CUBIC)
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)

    def restore(self, points: np.ndarray) -> np.ndarray:
        """Points (4,2) as fractions of the prepared image -> as fractions of the original one."""
        points = (points * (IMAGE_SIZE + 2 * self.pad) - self.pad) / IMAGE_SIZE
        return mirror_points(points) if self.mirrored else points


# In this order, until one finds a face. MediaPipe's thresholds stay at 0.5: below, it takes more text for faces.
ATTEMPTS = (
    Attempt(),
    Attempt(mirrored=True),
    Attempt(pad=8),
    Attempt(pad=24),
    Attempt(pad=24, contrast=True),
)


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Key points of N faces; no image is dropped.

    points (N,4,2) float32: x and y of POINTS in [0,1] of image width and height, nan where no face was found; what
    MediaPipe guesses outside the image is moved onto its border. mask (N,) bool: a face was found. method (N,) str:
    the attempt that found it, "" for none. fingerprint: of the images, see `image_fingerprint`. mediapipe: its version.
    """

    points: np.ndarray
    mask: np.ndarray
    method: np.ndarray
    fingerprint: str
    mediapipe: str

    def save(self, path: Path) -> None:
        """Write one npz file, whole or not at all; the same landmarks give the same bytes."""
        _write_arrays(path, **vars(self))


def load_landmarks(path: Path, dataset: FER2013) -> Landmarks:
    """Read the landmarks of `faces` from a file that `Landmarks.save` wrote.

    DataError when the file is missing or damaged, or belongs to other images.
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
    """Return 16 hex digits that identify images (N,48,48) uint8 and their order; landmarks depend on nothing else."""
    return hashlib.blake2b(np.ascontiguousarray(images), digest_size=8).hexdigest()


def mirror_points(points: np.ndarray) -> np.ndarray:
    """Points (...,4,2) of a face -> those of its mirror image: x becomes 1 - x, left and right change names."""
    return points[..., [1, 0, 3, 2], :] * np.array([-1, 1], points.dtype) + np.array([1, 0], points.dtype)


def label_landmarks(
    images: np.ndarray,
    workers: int | None = None,
    cache: Path | None = None,
    progress: Callable[[str], object] = print,
    attempts: Sequence[Attempt] = ATTEMPTS,
    eyes: str = "contour",
) -> Landmarks:
    """Find the key points of images (N,48,48) uint8; the result does not depend on the number of workers.

    workers: processes, by default one per core. cache: folder in which finished chunks of images are kept, so that a
    stopped run goes on where it was. progress: gets about ten lines of text. eyes: which mean is an eye's center, a key
    of EYES.

    Raises LandmarksUnavailable when MediaPipe cannot be used, DataError when there is not one face in all images.
    """
    version = mediapipe_version()
    method = [*map(str, attempts), ""]
    chunks = {start: images[start : start + CHUNK] for start in range(0, len(images), CHUNK)}
    files = {start: cache and cache / f"{_key(chunk, version, attempts, eyes)}.npz" for start, chunk in chunks.items()}
    done = {start: part for start, file in files.items() if file and (part := _read_chunk(file, len(chunks[start])))}
    meter = _Meter(len(images), progress, earlier=[found for _, found in done.values()])
    waiting = {start: chunk for start, chunk in chunks.items() if start not in done}
    for start, (points, found) in _run_workers(waiting, workers or _cores(), tuple(attempts), eyes):
        if files[start]:
            _write_arrays(files[start], points=points, found=found)
        done[start] = points, found
        meter.add(found)
    points, found = (np.concatenate(parts) for parts in zip(*(done[start] for start in chunks), strict=True))
    if not (found >= 0).any():
        raise DataError(
            f"no face was found in any of the {len(images):,} images; give pictures of faces from the front"
        )
    return Landmarks(points, found >= 0, np.array(method)[found], image_fingerprint(images), version)


# --- Chunks, workers, progress ----------------------------------------------------------------------------------------


def _key(chunk: np.ndarray, *settings: object) -> str:
    """What the labels of a chunk depend on: the images, the settings, and the code that finds them."""
    digest = hashlib.blake2b(np.ascontiguousarray(chunk), digest_size=8)
    digest.update(repr(settings).encode() + Path(__file__).read_bytes())
    return digest.hexdigest()


def _read_chunk(path: Path, n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The points (n,4,2) and numbers of attempts (n,) of a finished chunk; None when it has to be done (again)."""
    arrays = _read_arrays(path, ("points", "found"))
    return (arrays["points"], arrays["found"]) if arrays and len(arrays["found"]) == n else None


def _run_workers(
    chunks: dict[int, np.ndarray], workers: int, attempts: tuple[Attempt, ...], eyes: str
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Label chunks in worker processes; yields (key of the chunk, its result), in the order in which they are ready."""
    if not chunks:
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy threads and GPU handles of the parent
    pool = ProcessPoolExecutor(min(workers, len(chunks)), context, prepare_worker)
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
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Meter:
    """Says about ten times how far the labelling is."""

    def __init__(self, total: int, say: Callable[[str], object], earlier: Iterable[np.ndarray]) -> None:
        """earlier: the numbers of attempts (n,) of each chunk that an earlier run has labeled."""
        self.total, self.say = total, say
        self.done = self.with_face = 0
        for found in earlier:
            self._count(found)
        self.started, self.at_start, self.at_last_line = time.monotonic(), self.done, self.done
        if self.done:
            say(f"{self.done:,}/{total:,} were labeled by an earlier run")

    def add(self, found: np.ndarray) -> None:
        """Count a chunk; speak when another tenth is complete."""
        self._count(found)
        if self.done - self.at_last_line < self.total / 10 and self.done < self.total:
            return
        self.at_last_line = self.done
        seconds_each = (time.monotonic() - self.started) / (self.done - self.at_start)
        left = seconds_each * (self.total - self.done)
        left_text = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        rate = self.with_face / self.done
        self.say(f"labeled {self.done:,}/{self.total:,}  with a face {rate:.1%}  left {left_text}")

    def _count(self, found: np.ndarray) -> None:
        self.done += len(found)
        self.with_face += int((found >= 0).sum())


def _label_chunk(images: np.ndarray, attempts: tuple[Attempt, ...], eyes: str) -> tuple[np.ndarray, np.ndarray]:
    """Points (n,4,2) float32 and the number of the attempt that found them (n,) int8, -1 for none."""
    points = np.full((len(images), len(POINTS), 2), np.nan, np.float32)
    found = np.full(len(images), -1, np.int8)
    for i, image in enumerate(images):
        for number, attempt in enumerate(attempts):
            face = _find_points(image, attempt, eyes)
            if face is not None:
                points[i], found[i] = face, number
                break
    return points, found


def _find_points(image: np.ndarray, attempt: Attempt, eyes: str) -> np.ndarray | None:
    """The points (4,2) that MediaPipe finds in an image (48,48), None without a face."""
    dataset = _face_mesh().process(attempt.prepare(image)).multi_face_landmarks
    if not dataset:
        return None
    mesh = np.array([(point.x, point.y) for point in dataset[0].landmark])
    points = np.stack([mesh[list(numbers)].mean(0) for numbers in (*EYES[eyes], *LIP_CORNERS)])
    return attempt.restore(points).clip(0, 1)


@functools.cache
def _face_mesh() -> object:
    """MediaPipe's face mesh for single images, made once per process."""
    try:
        from mediapipe import solutions

        # refine_landmarks: the mesh of 2020, which has irises and is the more exact one
        return solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True)
    except Exception as error:  # broken installations fail in many ways
        raise LandmarksUnavailable(f"MediaPipe does not work ({type(error).__name__}: {error}); {INSTALL}") from None


# --- Files ------------------------------------------------------------------------------------------------------------


def _write_arrays(path: Path, **arrays: object) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write(path, buffer.getbuffer())


def _read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The arrays in an npz file; None when it is missing, damaged, or lacks one of them."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error):
        return None
