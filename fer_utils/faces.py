"""Find the faces of pictures and predict their emotions; the command `fer predict` and the demo use this as well.

from fer_utils import predict_faces

predict_faces("party.jpg").to_frame()
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn

from fer_utils import classifiers
from fer_utils.data.constants import EMOTIONS, IMAGE_SIZE
from fer_utils.device import select_device
from fer_utils.errors import DataError, TrainingError
from fer_utils.files import read_file, readable
from fer_utils.models.weights import load_classifier, read_origin
from fer_utils.vision.detector import Face, Finder, start_finder
from fer_utils.vision.photos import MAX_BYTES, crop_faces, find_in_photo, read_image
from fer_utils.vision.video import Smoother

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # what is used of a folder
Picture = str | Path | np.ndarray


# --- Results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaceResult:
    """One face of a picture."""

    box: tuple[float, float, float, float]  # left, top, width, height in pixels of the upright picture
    detector_confidence: float  # 0 to 1; nan without a detector
    label: str  # the likeliest emotion
    probabilities: dict[str, float]  # emotion -> probability, in the order of EMOTIONS
    is_small: bool  # see Face


@dataclass(frozen=True)
class PictureResult:
    """The faces of one picture, from left to right."""

    picture: str  # its path, or "array 1", "array 2", ...
    faces: tuple[FaceResult, ...] = ()
    error: str = ""  # why the picture could not be read

    @property
    def notice(self) -> str:
        """Say how many faces may be too small for the classifier; "" if none."""
        return small_notice(self.picture, sum(face.is_small for face in self.faces))


def small_notice(picture: str, n: int) -> str:
    """Say that n faces of a picture or video may be too small for the classifier; "" if n is 0."""
    if not n:
        return ""
    faces = "1 face may be" if n == 1 else f"{n:,} faces may be"
    return f"{picture}: {faces} too small; below {IMAGE_SIZE}x{IMAGE_SIZE} pixels, predictions are unreliable"


class Results(list[PictureResult]):
    """The results of several pictures, in their order."""

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per face; a picture without faces has no row."""
        return pd.DataFrame([row for result in self for row in to_rows(result)], columns=COLUMNS)


COLUMNS = ["picture", "face", "x", "y", "width", "height", "detector_confidence", "label", *EMOTIONS]


def to_rows(result: PictureResult) -> list[dict[str, object]]:
    """Return one row per face, with the keys COLUMNS; faces are counted from 1."""
    return [
        {
            "picture": result.picture,
            "face": number,
            **dict(zip(("x", "y", "width", "height"), face.box, strict=True)),
            "detector_confidence": face.detector_confidence,
            "label": face.label,
            **face.probabilities,
        }
        for number, face in enumerate(result.faces, start=1)
    ]


def to_result(picture: str, faces: Sequence[Face], probs: Sequence[np.ndarray], error: str = "") -> PictureResult:
    """Put the faces of one picture and their probabilities (n,7) together."""
    return PictureResult(picture, tuple(_to_face(face, row) for face, row in zip(faces, probs, strict=True)), error)


def _to_face(face: Face, probs: np.ndarray) -> FaceResult:
    box, label = tuple(float(value) for value in face.box), EMOTIONS[int(probs.argmax())]
    probabilities = dict(zip(EMOTIONS, probs.tolist(), strict=True))
    return FaceResult(box, face.score, label, probabilities, face.is_small)


# --- Predict ----------------------------------------------------------------------------------------------------------


def predict_faces(
    pictures: Picture | Iterable[Picture], model: str | Path | None = None, device: str = "auto", batch_size: int = 256
) -> Results:
    """Find the faces of pictures and predict their emotions; returns one result per picture.

    pictures: one or several of these: the path of an image, of a folder of images, an array (H,W,3) uint8 RGB or (H,W)
    uint8 gray. model: the path of a checkpoint, a name in classifiers.FILES, or None for the network with the best
    accuracy on val that there is. device: "auto", "cpu" or "cuda". batch_size: faces that the network gets at once.

    Without MediaPipe, each whole picture counts as one face, with a warning. A picture that cannot be read is left out
    with a warning, and its result says why; DataError if none can be read. TrainingError if the model cannot be used.
    """
    predictor, problem = load_predictor(model, device)
    if problem:
        warnings.warn(problem, stacklevel=2)
    found = [_find(name, picture, predictor) for name, picture in list_pictures(pictures)]
    errors = [error for _, _, _, error in found if error]
    if len(errors) == len(found):
        raise DataError(errors[0] if errors else "there are no pictures; give at least one")
    probs = iter(predictor.classify(np.concatenate([crops for _, _, crops, _ in found]), batch_size))
    results = Results()
    for name, faces, _, error in found:
        if error:
            warnings.warn(error, stacklevel=2)
        results.append(to_result(name, faces, list(itertools.islice(probs, len(faces))), error))
    return results


def _find(name: str, picture: Picture, predictor: "FacePredictor") -> tuple[str, list[Face], np.ndarray, str]:
    """Return the name of a picture, its faces, their crops, and why it could not be read; the pixels are let go."""
    try:
        return name, *predictor.find(load_picture(picture)), ""
    except DataError as error:
        return name, [], np.empty((0, IMAGE_SIZE, IMAGE_SIZE), np.uint8), str(error)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The n faces of one image."""

    faces: list[Face]
    crops: np.ndarray  # (n,48,48) uint8
    probs: np.ndarray  # (n,7)


# How faces are searched: only a photo that stands still has the time for small, lying and upside-down faces.
SEARCH: dict[str, Callable[[np.ndarray, Finder], list[Face]]] = {
    "photo": find_in_photo,
    "video": lambda image, finder: finder(image),
    "webcam": lambda image, finder: finder(image, ranges=("short",)),  # a webcam is near
}


@dataclass(frozen=True, eq=False)
class FacePredictor:
    """Finds the faces of images and predicts their emotions with one network, or with the average of several."""

    networks: Mapping[str, nn.Module]
    device: torch.device
    finder: Finder  # see start_finder

    def __call__(self, image: np.ndarray, source: str = "photo") -> Prediction:
        """Find and classify the faces of an image (H,W,3) uint8 RGB. source: a key of SEARCH."""
        faces, crops = self.find(image, source)
        return Prediction(faces, crops, self.classify(crops))

    def find(self, image: np.ndarray, source: str = "photo") -> tuple[list[Face], np.ndarray]:
        """Find the n faces of an image; returns them and their crops (n,48,48) uint8."""
        faces = SEARCH[source](image, self.finder)
        return faces, crop_faces(image, faces)

    def classify(self, crops: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Compute the probabilities (n,7) of crops (n,48,48) uint8."""
        return classifiers.average(classifiers.classify(self.networks, crops, self.device, batch_size))

    def for_video(self, smoothing: bool = True) -> Callable[[np.ndarray], tuple[list[Face], np.ndarray]]:
        """Return the function that annotate_video calls for each frame of one video."""
        smooth = Smoother()

        def predict_frame(frame: np.ndarray) -> tuple[list[Face], np.ndarray]:
            prediction = self(frame, "video")
            probs = smooth(prediction.faces, prediction.probs) if smoothing else prediction.probs
            return prediction.faces, probs

        return predict_frame


def load_predictor(model: str | Path | None = None, device: str = "auto") -> tuple[FacePredictor, str]:
    """Load a network and start the face detector; returns both and, if there is no detector, a sentence that says why.

    model, device: see predict_faces. The detector is started once and runs until Python ends.
    """
    chosen = select_device(device)
    path = find_network(model)
    network = load_classifier(path).to(chosen)
    finder, problem = _start_finder_once()
    return FacePredictor({path.stem: network}, chosen, finder), problem


_start_finder_once = functools.cache(start_finder)


def find_network(model: str | Path | None) -> Path:
    """Return the file of a network; model: see predict_faces. TrainingError if there is none."""
    if model in classifiers.FILES:
        path = classifiers.find_classifier("reports", *classifiers.FILES[model])
        if path is None:
            stage = classifiers.FILES[model][0]
            raise TrainingError(f"{model} is not trained yet; run notebook {stage}, or choose another model")
        return path
    if model is not None:
        return Path(model).expanduser()
    paths = [path for place in classifiers.FILES.values() if (path := classifiers.find_classifier("reports", *place))]
    if not paths:
        raise TrainingError("there is no trained network yet; run notebook 04_baseline_cnn, or name a model")
    return max(paths, key=_accuracy)


def _accuracy(path: Path) -> float:
    """Return the recorded accuracy on val of a network; 0 if there is none, or none on faces."""
    origin = read_origin(path)
    return 0 if origin.get("data") == "sample" else origin.get("val", 0)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def list_pictures(pictures: Picture | Iterable[Picture]) -> list[tuple[str, Path | np.ndarray]]:
    """Return the name and the path or array of every picture, those of folders in the order of their names.

    DataError if a folder has no pictures.
    """
    if isinstance(pictures, str | Path) or (isinstance(pictures, np.ndarray) and pictures.ndim < 4):
        pictures = [pictures]
    listed: list[tuple[str, Path | np.ndarray]] = []
    for number, picture in enumerate(pictures, start=1):
        if isinstance(picture, str | Path):
            listed += [(str(path), path) for path in list_files(Path(picture).expanduser(), PICTURES)]
        else:
            listed.append((f"array {number}", picture))
    return listed


def list_files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of a folder that end in one of `suffixes`, or the path itself if it is no folder.

    DataError if the folder has no such file.
    """
    if not path.is_dir():
        return [path]
    with readable(path):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and file.name[0] != ".")
    if not files:
        raise DataError(f"{path} holds no pictures; give a folder with {', '.join(suffixes)} files")
    return files


def load_picture(picture: Path | np.ndarray) -> np.ndarray:
    """Return a picture as an upright image (H,W,3) uint8 RGB; DataError if it cannot be read."""
    if isinstance(picture, Path):
        return read_image(read_file(picture, MAX_BYTES), str(picture), largest_side=None)
    image = np.asarray(picture)
    is_picture = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not is_picture or not image.size:
        shape = f"{image.dtype} array of shape {image.shape}"
        raise DataError(f"a picture cannot be a {shape}; give (H,W,3) RGB or (H,W) gray, uint8 from 0 to 255")
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
