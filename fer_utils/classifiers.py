"""The trained classifiers that are there, what they say of crops of faces, and where in a crop they find it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from fer_utils import cam
from fer_utils.data.constants import EMOTIONS
from fer_utils.errors import TrainingError
from fer_utils.models.weights import load_classifier
from fer_utils.paths import find_artifact
from fer_utils.predict import predict_logits

# name: the notebook that trains it, and the file that it leaves
FILES = {
    "baseline_cnn": ("04_baseline_cnn", "baseline_cnn_seed0.pt"),
    "attention_resnet18": ("05_attention_resnet", "attention_resnet18.pt"),
    "best_resnet18": ("05_attention_resnet", "best_resnet18.pt"),
    "efficientnet_crp": ("06_efficientnet_ablation", "efficientnet_crp_seed0.pt"),
    "efficientnet_mixup_cutmix": ("06_efficientnet_ablation", "efficientnet_mixup_cutmix_seed0.pt"),
}
NO_CLASSIFIER = (
    "There is no trained network yet, so nothing can be said about a face. Run the notebook 04_baseline_cnn first "
    "(./run_all.sh --only 04, or by hand in JupyterLab), then this one again."
)
LEAST_CELLS = 6  # a map of fewer cells across says hardly more than "in the middle"


def load_classifiers(
    inputs: str | Path, device: torch.device | str = "cpu", names: Iterable[str] | None = None
) -> dict[str, nn.Module]:
    """The models of FILES that earlier notebooks left, in evaluation mode, by name; {} when there is none.

    inputs: as every notebook gets it. names: which of FILES, in this order; None: all. A model that is missing or
    damaged is left out, and a printed line says so.
    """
    models = {}
    for name in FILES if names is None else names:
        stage, file = FILES[name]
        path = find_artifact(inputs, stage, file)
        if not path.is_file():
            print(f"{name} is left out: notebook {stage} has not made it yet")
            continue
        try:
            models[name] = load_classifier(path).to(device)
        except TrainingError as error:
            print(f"{name} is left out: {error}")
    return models


def classify(models: Mapping[str, nn.Module], crops: np.ndarray, device: torch.device | str) -> dict[str, np.ndarray]:
    """What each network says of crops (n,48,48) uint8, all in one batch: probabilities (n,7) by its name."""
    if not len(crops):
        return {name: np.empty((0, len(EMOTIONS))) for name in models}
    return {name: softmax(predict_logits(model, crops, device), 1) for name, model in models.items()}


def average(probs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The ensemble's probabilities (n,7): the mean of those of several networks."""
    return np.mean(list(probs.values()), axis=0)


def explain(model: nn.Module, crops: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """Where a network finds its answers to crops (n,48,48) uint8: Grad-CAM maps (n,48,48), each from 0 to 1.

    They are made from the last layer that still has LEAST_CELLS cells across.
    """
    answers = predict_logits(model, crops, device).argmax(1)
    layers, only = list(cam.LAYERS[type(model)]), {"Grad-CAM": cam.grad_cam}
    _, maps = cam.heat_maps(model, crops, layers, answers, methods=only, device=device)
    last = [layer for layer in maps.values() if layer.shape[-1] >= LEAST_CELLS][-1]
    large = cam.upsample(last)
    return large / np.maximum(large.max((1, 2), keepdims=True), 1e-8)
