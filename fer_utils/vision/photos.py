"""Faces in photos, webcam frames and videos: read images, crop faces as in FER2013, and draw predictions.

Images are (H,W,3) uint8, RGB. This module does not import torch, so that the process of the face detector stays small.
It neither sends images anywhere nor stores them.
"""

import io
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fer_utils.data.constants import EMOTIONS, IMAGE_SIZE
from fer_utils.errors import DataError
from fer_utils.files import decoding
from fer_utils.vision.detector import Face

LARGEST_SIDE = 2048  # pixels; larger uploads are scaled down
MAX_BYTES = 256_000_000  # of an upload; an image of 40 megapixels without compression has 120 MB
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
CYAN, DARK, WHITE = (0, 229, 255), (20, 20, 20), (255, 255, 255)


# --- Crop -------------------------------------------------------------------------------------------------------------


def crop_faces(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """Crop n faces as input for a network: (n,48,48) uint8, gray; beyond the border, the outermost pixels repeat."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.array([_crop(gray, face.square) for face in faces], np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)


def _crop(gray: np.ndarray, square: tuple[float, float, float]) -> np.ndarray:
    side = max(1, round(square[2]))
    left, top = round(square[0]), round(square[1])
    rows = np.arange(top, top + side).clip(0, gray.shape[0] - 1)
    columns = np.arange(left, left + side).clip(0, gray.shape[1] - 1)
    # INTER_AREA averages all pixels when it shrinks a face, but gives visible blocks when it enlarges one.
    how = cv2.INTER_AREA if side > IMAGE_SIZE else cv2.INTER_CUBIC
    return cv2.resize(gray[np.ix_(rows, columns)], (IMAGE_SIZE, IMAGE_SIZE), interpolation=how)


# --- Draw -------------------------------------------------------------------------------------------------------------


def draw_faces(image: np.ndarray, faces: Sequence[Face], probs: np.ndarray | None = None) -> np.ndarray:
    """Draw a box and key points for each face on a copy of an image, or the words "no face".

    The text above a box is the number of the face and, from probs (n,7), the predicted emotion. The text below is the
    score of the detector.
    """
    picture = image.copy()
    scale = max(image.shape[:2]) / 640
    line = max(1, round(2 * scale))
    for i, face in enumerate(faces):
        left, top, width, height = (round(value) for value in face.box)
        cv2.rectangle(picture, (left, top), (left + width, top + height), CYAN, line)
        for x, y in face.points.round().astype(int).tolist():
            cv2.circle(picture, (x, y), 2 * line, CYAN, -1)
        write_text(picture, label(i, probs), (left, top), scale)
        if not np.isnan(face.score):
            write_text(picture, f"face {face.score:.2f}", (left, top + height + round(24 * scale)), scale)
    if not faces:
        write_text(picture, "no face", (0, round(30 * scale)), scale)
    return picture


def label(i: int, probs: np.ndarray | None) -> str:
    """Return the number of face i, counted from 1, and its predicted emotion with its probability."""
    return f"{i + 1}" if probs is None else f"{i + 1} {EMOTIONS[int(probs[i].argmax())]} {probs[i].max():.0%}"


def write_text(picture: np.ndarray, text: str, corner: tuple[int, int], scale: float) -> None:
    """Write text on a dark bar just above a corner (x, y), moved if necessary to stay inside the picture."""
    size, line = 0.5 * scale, max(1, round(scale))
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, line)
    x = int(np.clip(corner[0], 0, max(0, picture.shape[1] - width)))
    y = int(np.clip(corner[1] - below, height + below, picture.shape[0] - below))
    cv2.rectangle(picture, (x, y - height - below), (x + width, y + below), DARK, -1)
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, WHITE, line, cv2.LINE_AA)


def to_jpeg(picture: np.ndarray) -> bytes:
    """Encode a picture (H,W,3) uint8 RGB as JPEG."""
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


# --- Files from anywhere ----------------------------------------------------------------------------------------------


def read_image(content: bytes, name: str) -> np.ndarray:
    """Decode an uploaded file of any of FORMATS to an upright image (H,W,3), its longer side at most LARGEST_SIDE.

    Transparent parts become white, gray levels of more than 8 bits are stretched from black to white, and only the
    first picture of an animation is used. DataError names the file and says whether it is no image, damaged, or too
    large.
    """
    if len(content) > MAX_BYTES:
        raise DataError(f"{name} has more than {MAX_BYTES // 10**6} MB; make it smaller and try again")
    with decoding(f"{name} is truncated or damaged", "save it again and retry"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.draft(None, (LARGEST_SIDE, LARGEST_SIDE))  # JPEG: decode no more pixels than needed
            picture = _to_rgb(ImageOps.exif_transpose(image))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            millions = Image.MAX_IMAGE_PIXELS // 10**6
            raise DataError(f"{name} has more than {millions} megapixels; make it smaller and try again") from None
        except UnidentifiedImageError:
            raise DataError(f"{name} is not an image that can be read here; use one of {', '.join(FORMATS)}") from None
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
