"""Compute, save and load logits, from which all tables, tests and ensembles are made."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fer_utils.augment import to_float, warp
from fer_utils.data.constants import EMOTIONS
from fer_utils.data.dataset import FaceDataset
from fer_utils.errors import DataError

CROP = 42  # side of the ten crops in pixels; they are enlarged to 48 again
EDGE = (48 - CROP) / 2
# Test-time augmentation: the views of each face, as (mirrored, pixels to the right, pixels down, zoom).
VIEWS = {
    "none": [(False, 0, 0, 1)],
    "flip": [(mirrored, 0, 0, 1) for mirrored in (False, True)],
    "shifts": [
        (mirrored, x, y, 1) for mirrored in (False, True) for x, y in [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]
    ],
    "ten_crop": [
        (mirrored, EDGE * x, EDGE * y, 48 / CROP)
        for mirrored in (False, True)
        for x, y in [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    ],
}


def predict_outputs(
    model: nn.Module,
    images: np.ndarray | torch.Tensor,
    device: torch.device | str = "cpu",
    batch_size: int = 512,
    view: tuple[bool, float, float, float] = (False, 0, 0, 1),
) -> np.ndarray:
    """Compute the outputs of a network for images (N,48,48) uint8: (N,...) float32, in evaluation mode and fp32.

    view: one element of a list in VIEWS.
    """
    return outputs_on_device(model, torch.as_tensor(images), device, batch_size, view).cpu().numpy()


@torch.inference_mode()
def outputs_on_device(
    model: nn.Module,
    images: torch.Tensor,
    device: torch.device | str,
    batch_size: int,
    view: tuple[bool, float, float, float] = (False, 0, 0, 1),
    precision: str = "fp32",
) -> torch.Tensor:
    """Compute outputs like predict_outputs, but keep them on the device and do not wait for it.

    precision: "fp32" or "bf16".
    """
    training = model.training
    model.eval()
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = [
            model(show(to_float(chunk.to(device)), view).contiguous(memory_format=torch.channels_last))
            for chunk in images.split(batch_size)
        ]
    model.train(training)
    return torch.cat(outputs).float()  # (N,...)


def show(images: torch.Tensor, view: tuple[bool, float, float, float]) -> torch.Tensor:
    """Mirror images (N,1,48,48), then zoom around the center and shift, as one element of a list in VIEWS says."""
    mirrored, right, down, zoom = view
    if mirrored:
        images = images.flip(-1)
    if (right, down, zoom) == (0, 0, 1):
        return images
    # Maps points of the new image to the old one. Coordinates go from -1 to 1, so a pixel is 2/48.
    affine = torch.tensor([[1 / zoom, 0, -right / 24], [0, 1 / zoom, -down / 24]], device=images.device)
    return warp(images, affine.expand(len(images), 2, 3))


def predict_logits(
    model: nn.Module,
    images: np.ndarray | torch.Tensor,
    device: torch.device | str = "cpu",
    views: str = "none",
    batch_size: int = 512,
) -> np.ndarray:
    """Compute logits (N,7) float32 of images (N,48,48) uint8, averaged over one or more views of each image.

    views: test-time augmentation, a key of VIEWS; ValueError lists them. "none": the image itself. "flip": also
    mirrored. "shifts": centered and shifted by two pixels to each side, all also mirrored. "ten_crop": crops of the
    four corners and the center, all also mirrored (Krizhevsky et al. 2012).
    """
    if views not in VIEWS:
        raise ValueError(f"there are no views {views!r}; choose one of {', '.join(VIEWS)}")
    return np.mean([predict_outputs(model, images, device, batch_size, view) for view in VIEWS[views]], axis=0)


@dataclass(frozen=True)
class Predictions:
    """Logits of one published model for all its seeds, with the facts that are needed to use them safely."""

    val: np.ndarray  # (S,N,7) logits of S seeds, in the row order of the data
    test: np.ndarray  # (S,N,7), likewise
    seeds: tuple[int, ...]  # (S,)
    fingerprint: str  # of the data
    spec: dict | None = None  # of the network, see models.build; None for an ensemble
    views: str = "none"  # test-time augmentation, a key of VIEWS

    def save(self, path: Path) -> None:
        """Write a compressed npz with float16 logits (about 0.5 MB per seed for all of FER2013)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            val=self.val.astype(np.float16),
            test=self.test.astype(np.float16),
            seeds=np.array(self.seeds),
            fingerprint=np.array(self.fingerprint),
            classes=np.array(EMOTIONS),
            spec=np.array(json.dumps(self.spec)),
            views=np.array(self.views),
        )


def load_predictions(path: Path, dataset: FaceDataset) -> Predictions:
    """Load published logits as float32.

    Raises DataError if the file is missing, or was made on other data or with another class order.
    """
    if not path.exists():
        raise DataError(f"{path.name} is not in {path.parent}; run the notebook whose number it begins with")
    with np.load(path) as file:
        if tuple(file["classes"]) != EMOTIONS:
            raise DataError(f"{path.name} has the class order {', '.join(file['classes'])}, not {', '.join(EMOTIONS)}")
        if str(file["fingerprint"]) != dataset.fingerprint:
            raise DataError(
                f"{path.name} was made on other data (fingerprint {file['fingerprint']}, here {dataset.fingerprint})"
            )
        return Predictions(
            val=file["val"].astype(np.float32),
            test=file["test"].astype(np.float32),
            seeds=tuple(int(seed) for seed in file["seeds"]),
            fingerprint=dataset.fingerprint,
            spec=json.loads(str(file["spec"])),
            views=str(file["views"]),
        )
