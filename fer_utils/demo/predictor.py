"""Find and classify the faces of a picture for the demo, with one network or with the average of all."""

import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fer_utils import cam, classifiers
from fer_utils.cost import count_params
from fer_utils.device import select_device
from fer_utils.paths import PROJECT_ROOT, find_artifact, project_path
from fer_utils.vision.detector import RANGES, Face, Finder
from fer_utils.vision.photos import crop_faces
from fer_utils.vision.video import Smoother

ENSEMBLE = "ensemble"


@dataclass(frozen=True, eq=False)
class Prediction:
    """The n faces of one picture."""

    faces: list[Face]
    crops: np.ndarray  # (n,48,48) uint8
    probs: np.ndarray  # (n,7)
    heat_maps: np.ndarray | None  # (n,48,48), 0 to 1; None if they were not asked for


class Predictor:
    """All trained networks that there are."""

    notice: str  # what the visitor should know: a missing detector, networks that cannot be used

    def __init__(self, inputs: str | Path, device: str, finder: Future[tuple[Finder, str]]) -> None:
        """inputs: where notebooks left their networks, see find_artifact. finder: what start_finder will return."""
        self._inputs, self._device = inputs, select_device(device)
        with redirect_stdout(io.StringIO()) as printed:
            self._models = classifiers.load_classifiers(inputs, self._device, trained(inputs))
        self._finder, problem = finder.result()
        lines = [problem, printed.getvalue(), "" if self._models else classifiers.NO_CLASSIFIER]
        self.notice = " ".join(line.strip() for line in lines if line.strip())

    def predict(
        self, image: np.ndarray, network: str, ranges: Sequence[str] = RANGES, heat_map: bool = False
    ) -> Prediction:
        """Find and classify all faces in an image (H,W,3) uint8 RGB.

        network: an id of `networks`. ranges: see FaceFinder. heat_map: also explain the predictions with Grad-CAM.
        """
        faces = self._finder(image, ranges=ranges)
        crops = crop_faces(image, faces)
        chosen = self._models if network == ENSEMBLE else {network: self._models[network]}
        probs = classifiers.average(classifiers.classify(chosen, crops, self._device))
        maps = classifiers.explain(self._models[network], crops, self._device) if heat_map and faces else None
        return Prediction(faces, crops, probs, maps)

    def for_video(self, network: str, smoothing: bool) -> Callable[[np.ndarray], tuple[list[Face], np.ndarray]]:
        """Return the function that annotate_video calls for each frame of one video."""
        smooth = Smoother()

        def predict_frame(frame: np.ndarray) -> tuple[list[Face], np.ndarray]:
            prediction = self.predict(frame, network)
            probs = smooth(prediction.faces, prediction.probs) if smoothing else prediction.probs
            return prediction.faces, probs

        return predict_frame

    def networks(self) -> list[dict]:
        """Describe the networks for a menu: id, title, a line about each, and whether Grad-CAM can explain it."""
        rows = [
            {"id": name, "title": name, "about": self._about(name), "heatMap": type(model) in cam.LAYERS}
            for name, model in self._models.items()
        ]
        if len(rows) > 1:
            about = f"The average of the probabilities of all {len(rows)} networks."
            rows.append({"id": ENSEMBLE, "title": f"all {len(rows)}, averaged", "about": about, "heatMap": False})
        return rows

    def _about(self, name: str) -> str:
        size = f"{count_params(self._models[name]) / 1e6:.1f} million parameters"
        return f"{accuracy_on_val(name, self._inputs)}, {size}."


def trained(inputs: str | Path) -> list[str]:
    """Return the networks of classifiers.FILES whose file is there."""
    return [name for name, place in classifiers.FILES.items() if find_artifact(inputs, *place).is_file()]


def accuracy_on_val(name: str, inputs: str | Path) -> str:
    """Say how often a network of classifiers.FILES is right on the validation split, and of which data."""
    stage, file = classifiers.FILES[name]
    path = find_artifact(inputs, stage, file)
    manifest = _read_manifest(_manifest_of(path, stage, inputs))
    rows = [row for row in manifest.get("summary", ()) if (row["model"], row["split"]) == (name, "val")]
    if manifest.get("notebook") != stage or not rows:
        return "How often it is right was not recorded"
    data = manifest["data_note"].rstrip(".") or "FER2013"
    return f"Right for {100 * rows[0]['accuracy']:.1f} % of {rows[0]['n']:,} validation images ({data})"


def _manifest_of(path: Path, stage: str, inputs: str | Path) -> Path:
    """Return the manifest of the run that wrote a file of weights."""
    own_run = PROJECT_ROOT / "outputs" / "my_run"
    if path.is_relative_to(own_run):
        return own_run / "manifest.json"
    published = project_path(inputs) / "manifests" / f"{stage}.json"
    return published if published.is_file() else project_path(inputs) / "manifest.json"


def _read_manifest(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
