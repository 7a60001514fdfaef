"""Faces in photos, webcam frames and videos: find them, crop them as FER2013's were, draw what a network says of them.

Images are (H,W,3) uint8, RGB. MediaPipe runs in a process of its own, as in landmarks.py, and torch is not needed here,
so that this process is small. Nothing in this module sends an image anywhere or keeps it.
"""

import io
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fer_utils.data.constants import EMOTIONS, IMAGE_SIZE
from fer_utils.errors import DataError
from fer_utils.vision.detector import Face

LARGEST_SIDE = 2048  # pixels; larger uploads are reduced
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
CYAN, DARK, WHITE = (0, 229, 255), (20, 20, 20), (255, 255, 255)


# --- Crop and smooth --------------------------------------------------------------------------------------------------


def crop_faces(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """What a network gets to see: (n,48,48) uint8, gray; beyond its border an image goes on with its last pixels."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.array([_crop(gray, face.square) for face in faces], np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)


def _crop(gray: np.ndarray, square: tuple[float, float, float]) -> np.ndarray:
    side = max(1, round(square[2]))
    left, top = round(square[0]), round(square[1])
    rows = np.arange(top, top + side).clip(0, gray.shape[0] - 1)
    columns = np.arange(left, left + side).clip(0, gray.shape[1] - 1)
    # INTER_AREA averages all pixels of a large face; enlarging, it would show blocks.
    how = cv2.INTER_AREA if side > IMAGE_SIZE else cv2.INTER_CUBIC
    return cv2.resize(gray[np.ix_(rows, columns)], (IMAGE_SIZE, IMAGE_SIZE), interpolation=how)


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
