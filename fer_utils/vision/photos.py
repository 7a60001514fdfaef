"""Faces in photos, webcam frames and videos: read images, search photos, crop faces as in FER2013, draw predictions.

Images are (H,W,3) uint8, RGB. This module does not import torch, so that the process of the face detector stays small.
It neither sends images anywhere nor stores them.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fer_utils.data.constants import EMOTIONS, IMAGE_SIZE
from fer_utils.errors import DataError
from fer_utils.files import decoding
from fer_utils.vision.detector import RANGES, Face, Finder, overlap, whole_image, without_doubles

LARGEST_SIDE = 2048  # pixels; larger uploads are scaled down, and larger photos are searched at this size
SMALLEST_TILE = 400  # pixels a side; in such a tile the detector finds faces from about 40 pixels on
CLEAR = 0.85  # score of a face that is surely upright; upside-down ones are sometimes found as well, with lower scores
MAX_BYTES = 256_000_000  # of an upload; an image of 40 megapixels without compression has 120 MB
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
CYAN, DARK, WHITE = (0, 229, 255), (20, 20, 20), (255, 255, 255)


# --- Find -------------------------------------------------------------------------------------------------------------


def find_in_photo(image: np.ndarray, finder: Finder) -> list[Face]:
    """Find the faces of a photo (H,W,3) uint8 RGB, small ones too, from left to right.

    The detector reduces whatever it gets to 128 or 192 pixels a side, so it overlooks the faces of a group. The photo
    is therefore also searched in tiles. If no face is clearly upright, it is turned by 90, 180 and 270 degrees as well.
    This takes too long for a webcam. finder: see start_finder.
    """
    if finder is whole_image:
        return finder(image)
    height, width = image.shape[:2]
    scale = min(1, LARGEST_SIDE / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    faces = [*finder(small), *_search_tiles(small, finder, SMALLEST_TILE)]
    if not any(face.score >= CLEAR and quarter_turns(face) == 0 for face in faces):
        for turns in (1, 2, 3):
            # Most photos without an upright face hold no face at all, so large tiles must do.
            turned = _search_tiles(np.rot90(small, turns), finder, 2 * SMALLEST_TILE)
            faces += [_turn_back(face, turns, size) for face in turned]
    return without_doubles([_move(face, 1 / scale) for face in faces])


def _search_tiles(image: np.ndarray, finder: Finder, side: int) -> list[Face]:
    """Find the faces of an image as a whole and in its tiles of side, twice side, four times side, ... pixels.

    A box that a tile cuts off is left out: in a neighbor or in a larger tile the face is whole. In so many tiles a
    detector is sometimes wrong, so each face must be confirmed.
    """
    faces = list(finder(image))
    height, width = image.shape[:2]
    while side < max(height, width):
        for top in _tile_starts(height, side):
            for left in _tile_starts(width, side):
                found = finder(image[top : top + side, left : left + side], ranges=("full",))
                moved = (_move(face, 1, left, top) for face in found)
                faces += [face for face in moved if not _is_cut(face.box, left, top, side, (width, height))]
        side *= 2
    confirmed = (_confirm(image, face, finder) for face in without_doubles(faces))
    return [face for face in confirmed if face]


def _confirm(image: np.ndarray, face: Face, finder: Finder) -> Face | None:
    """Find a face again in a window three times its size; None unless each of MediaPipe's detectors finds it there."""
    left, top, width, height = (round(value) for value in face.box)
    x, y = max(0, left - width), max(0, top - height)
    window = image[y : top + 2 * height, x : left + 2 * width]
    again = []
    for name in RANGES if window.size else ():
        found = (_move(seen, 1, x, y) for seen in finder(window, ranges=(name,)))
        again += sorted((seen for seen in found if overlap(seen.box, face.box) > 0.3), key=lambda seen: -seen.score)[:1]
    return max(again, key=lambda seen: seen.score) if len(again) == len(RANGES) else None


def _tile_starts(length: int, side: int) -> Iterator[int]:
    """Yield where tiles start along a length; neighbors share at least a quarter of their side."""
    steps = max(0, math.ceil((length - side) / (0.75 * side)))
    yield from (round(i * (length - side) / max(1, steps)) for i in range(steps + 1))


def _is_cut(box: Sequence[float], left: int, top: int, side: int, size: tuple[int, int]) -> bool:
    """Whether a box goes beyond an edge of its tile that is not an edge of the image; size: of the image."""
    starts = zip(box[:2], (left, top), strict=True)
    ends = zip((box[0] + box[2], box[1] + box[3]), (left + side, top + side), size, strict=True)
    return any(b < start and start > 0 for b, start in starts) or any(b > end and end < edge for b, end, edge in ends)


def _move(face: Face, scale: float, right: float = 0, down: float = 0) -> Face:
    """Scale the coordinates of a face, then move it."""
    left, top, width, height = (scale * value for value in face.box)
    x, y, side = (scale * value for value in face.square)
    box, square = (left + right, top + down, width, height), (x + right, y + down, side)
    return replace(face, box=box, square=square, points=scale * face.points + [right, down])


def _turn_back(face: Face, turns: int, size: tuple[int, int]) -> Face:
    """Return a face of np.rot90(image, turns) in coordinates of the image; size: width and height of the image."""
    center = np.array(size) / 2
    turned_center = center[::-1] if turns % 2 else center
    matrix = np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), turns)

    def place(points: np.ndarray) -> np.ndarray:
        return (points - turned_center) @ matrix + center  # (K,2)

    def place_box(left: float, top: float, width: float, height: float) -> np.ndarray:
        corners = place(np.array([[left, top], [left + width, top + height]]))
        return np.concatenate([corners.min(0), np.ptp(corners, axis=0)])  # (4,)

    box, square = place_box(*face.box), place_box(*face.square, face.square[2])
    return replace(face, box=tuple(box.tolist()), square=tuple(square[:3].tolist()), points=place(face.points))


def quarter_turns(face: Face) -> int:
    """Return by how many quarters a face is turned counterclockwise, -2 to 2: 0 upright, 2 or -2 upside down."""
    if not len(face.points):
        return 0
    x, y = face.points[3] - face.points[:2].mean(0)  # from the eyes to the mouth
    return round(math.atan2(x, y) / (math.pi / 2))


# --- Crop -------------------------------------------------------------------------------------------------------------


def crop_faces(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """Crop n faces as input for a network: (n,48,48) uint8, gray; beyond the border, the outermost pixels repeat.

    Crops of lying and upside-down faces are turned upright.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    crops = [np.rot90(_crop(gray, face.square), -quarter_turns(face)) for face in faces]
    return np.array(crops, np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)


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


def read_image(content: bytes, name: str, largest_side: int | None = LARGEST_SIDE) -> np.ndarray:
    """Decode a file of any of FORMATS to an upright image (H,W,3), its longer side at most largest_side; None: any.

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
            if largest_side:
                image.draft(None, (largest_side, largest_side))  # JPEG: decode no more pixels than needed
            picture = _to_rgb(ImageOps.exif_transpose(image))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            millions = Image.MAX_IMAGE_PIXELS // 10**6
            raise DataError(f"{name} has more than {millions} megapixels; make it smaller and try again") from None
        except UnidentifiedImageError:
            raise DataError(f"{name} is not an image that can be read here; use one of {', '.join(FORMATS)}") from None
        if largest_side:
            picture.thumbnail((largest_side, largest_side))
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
