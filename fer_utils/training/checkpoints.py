"""Save and load the state of a training run; the checkpoint before the newest one is kept as a spare."""

import hashlib
import os
from pathlib import Path

import torch

from fer_utils.errors import TrainingError
from fer_utils.files import decoding
from fer_utils.models.weights import read_torch_file
from fer_utils.training.config import TrainConfig


def checkpoint_file(folder: Path, label: str, config: TrainConfig, fingerprint: str) -> Path:
    """Return the checkpoint file of a run; its name depends on settings and data, so runs cannot be mixed up.

    label: name of the model, e.g. "baseline_cnn". fingerprint: of the data (FaceDataset.fingerprint).
    """
    digest = hashlib.sha256(f"{config}{fingerprint}".encode()).hexdigest()[:10]
    return folder / f"{label}-seed{config.seed}-{digest}.pt"


def write_checkpoint(state: dict, path: Path) -> None:
    """Write the state of a run; the previous checkpoint is kept as *.previous in case this one gets damaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    if path.exists():
        os.replace(path, _previous(path))
    os.replace(unfinished, path)


def drop_previous(path: Path) -> None:
    """Remove the previous checkpoint once training is complete, because checkpoints are large."""
    _previous(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict | None:
    """Read the newest readable checkpoint: `path`, or else the previous one; None if there is neither.

    A damaged one is ignored, and a line is printed.
    """
    for candidate in (path, _previous(path)):
        if candidate.exists():
            try:
                with decoding(f"{candidate.name} cannot be read", "it is ignored", TrainingError):
                    return read_torch_file(candidate)
            except TrainingError as error:
                print(error, flush=True)
    return None


def _previous(path: Path) -> Path:
    return path.with_suffix(".previous")
