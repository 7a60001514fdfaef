"""From images to logits, and logits on disk: the currency that tables, tests and ensembles are paid in."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fer_utils.augment import to_float
from fer_utils.data import EMOTIONS, FER2013, DataError


@torch.inference_mode()
def predict_outputs(
    model: nn.Module, images: np.ndarray | torch.Tensor, device: torch.device | str = "cpu", batch_size: int = 512
) -> np.ndarray:
    """What a network answers to images (N,48,48) uint8, float32, in evaluation mode and fp32; one row per image."""
    training = model.training
    model.eval()
    outputs = [
        model(to_float(chunk.to(device)).contiguous(memory_format=torch.channels_last))
        for chunk in torch.as_tensor(images).split(batch_size)
    ]
    model.train(training)
    return torch.cat(outputs).float().cpu().numpy()


def predict_logits(
    model: nn.Module,
    images: np.ndarray | torch.Tensor,
    device: torch.device | str = "cpu",
    flip: bool = False,
    batch_size: int = 512,
) -> np.ndarray:
    """Logits (N,7) float32 of images (N,48,48) uint8.

    flip: average the logits of each image and its mirror image (test-time augmentation).
    """
    logits = predict_outputs(model, images, device, batch_size)
    if flip:
        mirrored = torch.as_tensor(images).flip(-1)
        logits = (logits + predict_outputs(model, mirrored, device, batch_size)) / 2
    return logits


@dataclass(frozen=True)
class Predictions:
    """Logits of one published model for all its seeds, with what is needed to use them safely.

    val, test: (S,N,7) logits of S seeds. fingerprint: of the data they were made on, whose row order they follow.
    """

    val: np.ndarray
    test: np.ndarray
    seeds: tuple[int, ...]
    fingerprint: str

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
        )


def load_predictions(path: Path, faces: FER2013) -> Predictions:
    """Read published logits back as float32.

    Raises DataError when the file is missing, or was made on other data or with another class order.
    """
    if not path.exists():
        raise DataError(f"{path.name} is not in {path.parent}; run the notebook whose number it begins with")
    with np.load(path) as file:
        if tuple(file["classes"]) != EMOTIONS:
            raise DataError(f"{path.name} has the class order {', '.join(file['classes'])}, not {', '.join(EMOTIONS)}")
        if str(file["fingerprint"]) != faces.fingerprint:
            raise DataError(
                f"{path.name} was made on other data (fingerprint {file['fingerprint']}, here {faces.fingerprint})"
            )
        return Predictions(
            val=file["val"].astype(np.float32),
            test=file["test"].astype(np.float32),
            seeds=tuple(int(seed) for seed in file["seeds"]),
            fingerprint=faces.fingerprint,
        )
