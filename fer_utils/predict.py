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
from fer_utils.errors import DataError, TrainingError
from fer_utils.files import decoding, read_arrays

CROP = 42  # side of the ten crops in pixels; they are enlarged to 48 again
EDGE = (48 - CROP) / 2
MAX_LOGITS_BYTES = 100_000_000  # of a file of published logits; eight seeds of FER2013 have 1 MB
View = tuple[bool, float, float, float]
# Test-time augmentation: the views of each face, as (mirrored, pixels to the right, pixels down, zoom).
VIEWS: dict[str, list[View]] = {
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
    view: View = (False, 0, 0, 1),
) -> np.ndarray:
    """Compute the outputs of a network for images (N,48,48) uint8: (N,...) float32, in evaluation mode and fp32.

    view: one element of a list in VIEWS. TrainingError if an output is not finite.
    """
    outputs = outputs_on_device(model, torch.as_tensor(images), device, batch_size, view).cpu().numpy()
    bad = int((~np.isfinite(outputs)).reshape(len(outputs), -1).any(1).sum())
    if bad:
        raise TrainingError(
            f"the network gives outputs that are not finite for {bad:,} of {len(outputs):,} images; train it again"
        )
    return outputs


@torch.inference_mode()
def outputs_on_device(
    model: nn.Module,
    images: torch.Tensor,
    device: torch.device | str,
    batch_size: int,
    view: View = (False, 0, 0, 1),
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


def show(images: torch.Tensor, view: View) -> torch.Tensor:
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
    """Logits of one published model for all its seeds, with the facts that are needed to use them safely.

    DataError if a seed occurs twice, or if logits are not finite or do not fit the seeds.
    """

    val: np.ndarray  # (S,N,7) logits of S seeds, in the row order of the data
    test: np.ndarray  # (S,N,7), likewise
    seeds: tuple[int, ...]  # (S,)
    fingerprint: str  # of the data
    spec: dict | None = None  # of the network, see models.build; None for an ensemble
    views: str = "none"  # test-time augmentation, a key of VIEWS

    def __post_init__(self) -> None:
        """Check seeds and logits."""
        repeated = [seed for seed in self.seeds if self.seeds.count(seed) > 1]
        if repeated:
            raise DataError(f"the predictions have seed {repeated[0]} twice; every seed counts once")
        for split in ("val", "test"):
            logits = getattr(self, split)
            if len(logits) != len(self.seeds):
                raise DataError(f"the predictions have {split} logits of shape {logits.shape} for seeds {self.seeds}")
            if not np.isfinite(logits).all():
                raise DataError(f"the predictions have {split} logits that are not finite; run the notebook again")

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

    Raises DataError if the file is missing or damaged, was made on other data or with another class order, or if its
    logits do not fit the images of their split.
    """
    if not path.exists():
        raise DataError(f"{path.name} is not in {path.parent}; run the notebook whose number it begins with")
    with decoding(f"{path.name} is damaged or holds no predictions", "run the notebook that makes it"):
        arrays = read_arrays(path, MAX_LOGITS_BYTES)
        classes, fingerprint = tuple(map(str, arrays["classes"])), str(arrays["fingerprint"])
        if classes != EMOTIONS:
            raise DataError(f"{path.name} has the class order {', '.join(classes)}, not {', '.join(EMOTIONS)}")
        if fingerprint != dataset.fingerprint:
            raise DataError(
                f"{path.name} was made on other data (fingerprint {fingerprint}, not {dataset.fingerprint})"
            )
        return _to_predictions(arrays, path.name, dataset)


def _to_predictions(arrays: dict[str, np.ndarray], name: str, dataset: FaceDataset) -> Predictions:
    """Check the shapes of published logits and put them together; an error of any class if they do not fit."""
    seeds, spec, views = arrays["seeds"].tolist(), json.loads(str(arrays["spec"])), str(arrays["views"])
    if not (all(isinstance(seed, int) for seed in seeds) and isinstance(spec, dict | None) and views in VIEWS):
        raise ValueError("its seeds, spec or views are of no known kind")
    for split in ("val", "test"):
        expected = (len(seeds), len(dataset.where(split)), len(EMOTIONS))
        if arrays[split].shape != expected:
            raise DataError(f"{name} has {split} logits of shape {arrays[split].shape}; this {split} needs {expected}")
    val, test = (arrays[split].astype(np.float32) for split in ("val", "test"))
    try:
        return Predictions(val, test, tuple(seeds), dataset.fingerprint, spec, views)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
