"""The state of a training run on disk: written whole, with the state before it as a spare, read back safely."""

import hashlib
import os
from pathlib import Path

import torch

from fer_utils.models.weights import read_torch_file
from fer_utils.training.config import TrainConfig


def checkpoint_file(folder: Path, label: str, config: TrainConfig, fingerprint: str) -> Path:
    """Where a run keeps its checkpoint: the name changes with the settings and the data, so runs never mix.

    label: what distinguishes models, e.g. "baseline_cnn". fingerprint: of the data (FER2013.fingerprint).
    """
    digest = hashlib.sha256(f"{config}{fingerprint}".encode()).hexdigest()[:10]
    return folder / f"{label}-seed{config.seed}-{digest}.pt"


def write_checkpoint(state: dict, path: Path) -> None:
    """Write the state of a run; the one before it stays beside it as *.previous, should this one be damaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    torch.save(state, fresh)
    if path.exists():
        os.replace(path, _previous(path))
    os.replace(fresh, path)


def drop_previous(path: Path) -> None:
    """Remove the state before the newest one, once training is complete: checkpoints are large."""
    _previous(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict | None:
    """The newest readable checkpoint: `path`, else the one saved before it; None when there is neither."""
    existing = [candidate for candidate in (path, _previous(path)) if candidate.exists()]
    return next((state for state in map(read_torch_file, existing) if state is not None), None)


def _previous(path: Path) -> Path:
    return path.with_suffix(".previous")
