"""Load the trained classifiers, predict crops of faces with them, and explain the predictions with Grad-CAM."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from fer_utils import cam
from fer_utils.data.constants import EMOTIONS
from fer_utils.errors import TrainingError
from fer_utils.models.weights import load_classifier, read_origin
from fer_utils.paths import MY_RUN, artifact_paths, project_path
from fer_utils.predict import predict_logits

# Name of a classifier -> the notebook that trains it, and its file.
FILES = {
    "small_model": ("12_best_model", "small_model.pt"),
    "baseline_cnn": ("04_baseline_cnn", "baseline_cnn_seed0.pt"),
    "attention_resnet18": ("05_attention_resnet", "attention_resnet18.pt"),
    "best_resnet18": ("05_attention_resnet", "best_resnet18.pt"),
    "efficientnet_crp": ("06_efficientnet_ablation", "efficientnet_crp_seed0.pt"),
    "efficientnet_mixup_cutmix": ("06_efficientnet_ablation", "efficientnet_mixup_cutmix_seed0.pt"),
}
NO_CLASSIFIER = (
    "There is no trained network yet, so no face can be classified. Run the notebook 04_baseline_cnn first "
    "(./run_all.sh --only 04, or by hand in JupyterLab), then this one again."
)
LEAST_CELLS = 6  # a map with fewer cells per side shows little more than "in the center"


def load_classifiers(
    inputs: str | Path, device: torch.device | str = "cpu", names: Iterable[str] | None = None
) -> dict[str, nn.Module]:
    """Load the networks in FILES that earlier notebooks have trained, in evaluation mode; returns name -> network.

    inputs: a parameter of every notebook, see artifact_paths. names: which of FILES, in this order; None: all. A
    network that is missing or damaged is left out, and a line is printed.
    """
    models = {}
    for name in FILES if names is None else names:
        stage, file = FILES[name]
        path = find_classifier(inputs, stage, file)
        if path is None:
            print(f"{name} is left out: notebook {stage} has not trained it yet")
            continue
        try:
            models[name] = load_classifier(path).to(device)
        except TrainingError as error:
            print(f"{name} is left out: {error}")
    return models


def find_classifier(inputs: str | Path, stage: str, file: str) -> Path | None:
    """Find the weights of a classifier like find_artifact; None if there are none.

    A run by hand on the embedded sample must not replace a network that was trained on faces: what such a run wrote to
    outputs/my_run counts only if `inputs` names this folder.
    """
    my_run = project_path(MY_RUN)
    for path in artifact_paths(inputs, stage, file):
        by_hand = path.is_relative_to(my_run) and project_path(inputs) != my_run
        if path.is_file() and not (by_hand and read_origin(path).get("data") == "sample"):
            return path
    return None


def describe_origin(model: nn.Module) -> str:
    """Say what a loaded network was trained on, when, and how good it is on val."""
    origin = model.origin
    if not origin:
        return "its training was not recorded"
    data = {"sample": "the embedded sample", "rafdb": "RAF-DB"}.get(origin["data"], "FER2013")
    result = f"{100 * origin['val']:.1f} % of {origin['val_images']:,} validation images"
    return f"trained on {data} ({origin['train_images']:,} images, {origin['date']}); right for {result}"


def classify(
    models: Mapping[str, nn.Module], crops: np.ndarray, device: torch.device | str, batch_size: int = 256
) -> dict[str, np.ndarray]:
    """Classify crops (n,48,48) uint8 with every network; returns name -> probabilities (n,7)."""
    if not len(crops):
        return {name: np.empty((0, len(EMOTIONS))) for name in models}
    return {
        name: softmax(predict_logits(model, crops, device, batch_size=batch_size), 1) for name, model in models.items()
    }


def average(probs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Average the probabilities of several networks: (n,7)."""
    return np.mean(list(probs.values()), axis=0)


def explain(model: nn.Module, crops: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """Explain the predictions for crops (n,48,48) uint8 with Grad-CAM maps (n,48,48), each scaled to 0-1.

    The maps come from the last layer that still has LEAST_CELLS cells per side.
    """
    predicted = predict_logits(model, crops, device).argmax(1)  # (n,)
    layers, only = list(cam.LAYERS[type(model)]), {"Grad-CAM": cam.grad_cam}
    _, maps = cam.heat_maps(model, crops, layers, predicted, methods=only, device=device)
    last = [layer for layer in maps.values() if layer.shape[-1] >= LEAST_CELLS][-1]
    large = cam.upsample(last)
    return large / np.maximum(large.max((1, 2), keepdims=True), 1e-8)
