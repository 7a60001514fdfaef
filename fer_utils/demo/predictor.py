"""The trained networks as the demo shows them: a menu, and predictions of one of them or of all, with Grad-CAM."""

import io
from concurrent.futures import Future
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from fer_utils import cam, classifiers
from fer_utils.cost import count_params
from fer_utils.device import select_device
from fer_utils.faces import FacePredictor, Prediction
from fer_utils.vision.detector import Finder

ENSEMBLE = "ensemble"


@dataclass(frozen=True, eq=False)
class Explained(Prediction):
    """The n faces of one picture, and what their predictions rest on."""

    heat_maps: np.ndarray | None  # (n,48,48), 0 to 1; None if they were not asked for


class Predictor:
    """All trained networks that there are."""

    notice: str  # what the visitor should know: a missing detector, networks that cannot be used

    def __init__(self, inputs: str | Path, device: str, finder: Future[tuple[Finder, str]]) -> None:
        """inputs: where notebooks left their networks, see find_artifact. finder: what start_finder will return."""
        self._device = select_device(device)
        with redirect_stdout(io.StringIO()) as printed:
            self._models = classifiers.load_classifiers(inputs, self._device, trained(inputs))
        self._finder, problem = finder.result()
        lines = [problem, printed.getvalue(), "" if self._models else classifiers.NO_CLASSIFIER]
        self.notice = " ".join(line.strip() for line in lines if line.strip())

    def predict(self, image: np.ndarray, network: str, source: str = "photo", heat_map: bool = False) -> Explained:
        """Find and classify all faces in an image (H,W,3) uint8 RGB.

        network: an id of `networks`. source: a key of faces.SEARCH. heat_map: also explain the predictions with
        Grad-CAM.
        """
        found = self.faces_with(network)(image, source)
        explain = heat_map and found.faces
        maps = classifiers.explain(self._models[network], found.crops, self._device) if explain else None
        return Explained(found.faces, found.crops, found.probs, maps)

    def faces_with(self, network: str) -> FacePredictor:
        """Return what finds and classifies faces with one network of the menu, or with all."""
        chosen = self._models if network == ENSEMBLE else {network: self._models[network]}
        return FacePredictor(chosen, self._device, self._finder)

    def networks(self) -> list[dict]:
        """Describe the networks for a menu: id, title, a line about each, and whether Grad-CAM can explain it."""
        rows = [
            {"id": name, "title": name, "about": describe(model), "heatMap": type(model) in cam.LAYERS}
            for name, model in self._models.items()
        ]
        if len(rows) > 1:
            about = f"The average of the probabilities of all {len(rows)} networks."
            rows.append({"id": ENSEMBLE, "title": f"all {len(rows)}, averaged", "about": about, "heatMap": False})
        return rows


def describe(model: nn.Module) -> str:
    """Say in a sentence for the visitor what a network was trained on, how good it is on val, and how large."""
    origin = classifiers.describe_origin(model)
    return f"{origin[0].upper()}{origin[1:]}; {count_params(model) / 1e6:.1f} million parameters."


def trained(inputs: str | Path) -> list[str]:
    """Return the networks of classifiers.FILES whose file is there."""
    return [name for name, place in classifiers.FILES.items() if classifiers.find_classifier(inputs, *place)]
