"""A training run and its result."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from fer_utils.device import set_seed
from fer_utils.errors import TrainingError
from fer_utils.training.config import TrainConfig
from fer_utils.training.tasks import Task


@dataclass
class Run:
    """One training run: a network, its data and its settings. `fit_all` trains several.

    Train and val are pairs of images (N,48,48) or (N,3,H,W) uint8 and targets (N,...). Targets are labels (N,) int64,
    or what the task needs instead, such as shares of the classes (N,7) float32. Runs with the same arrays share them on
    the device.

    A run that resumes from its checkpoint ends with the same weights as an uninterrupted run, bit for bit on the same
    CPU. A checkpoint is written after every epoch; on a GPU at most every SAVE_SECONDS, and at the end.
    """

    model: nn.Module  # trained in place; ends with the weights of its best epoch on val
    train: tuple[np.ndarray, np.ndarray]  # images and targets to learn from
    val: tuple[np.ndarray, np.ndarray]  # images and targets that decide about the best epoch
    config: TrainConfig  # all settings
    checkpoint: Path | None = None  # file to save to and to resume from
    task: Task | None = None  # loss and metric; None: classification with the loss that config describes
    on_epoch: Callable[[dict], bool | None] | None = None  # called with each row of the history; True ends training
    name: str = ""  # printed before each line of progress


@dataclass
class FitResult:
    """The outcome of a run. The weights of the best epoch on val are in the model of the run itself.

    The train columns of the history are measured during training, with augmentation and dropout on. Both losses include
    label smoothing. A task with another metric has its name in place of "accuracy".
    """

    history: pd.DataFrame  # a row per epoch: epoch, lr, train_loss, train_accuracy, val_loss, val_accuracy, seconds
    precision: str  # of training: "fp32" or "bf16"
    task: Task  # loss and metric of the run

    @property
    def best_epoch(self) -> int:
        """The epoch with the best metric on val, counted from 1; the first of equal ones."""
        return 1 + self.task.best(self.history[f"val_{self.task.metric}"])

    @property
    def train_seconds(self) -> float:
        """Seconds spent on training batches in all epochs, without validation."""
        return float(self.history.seconds.sum())


def results_of(outcomes: Iterable[FitResult | TrainingError]) -> list[FitResult]:
    """Return the outcomes of several runs, or raise the first error among them."""
    results = []
    for outcome in outcomes:
        if isinstance(outcome, TrainingError):
            raise outcome
        results.append(outcome)
    return results


def seed_runs(
    build: Callable[[], nn.Module],
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    config: TrainConfig,
    seeds: Sequence[int],
    checkpoint: Callable[[TrainConfig], Path] | None = None,
    task: Task | None = None,
    name: str = "",
) -> list[Run]:
    """Make one run per seed from the same config. The seed decides initial weights, order, dropout and augmentation.

    build: builds a new model; each seed's model is independent of the seeds before it. checkpoint: returns the file for
    the config of a run. The other arguments are as in `Run`; the seed is added to the name. TrainingError if a seed
    occurs twice: both runs would be the same, and every comparison would count it twice.
    """
    for seed in seeds:
        if list(seeds).count(seed) > 1:
            raise TrainingError(f"seed {seed} occurs twice in {list(seeds)}; name every seed once")
    runs = []
    for seed in seeds:
        set_seed(seed)
        model, own = build(), replace(config, seed=seed)
        file = checkpoint(own) if checkpoint else None
        runs.append(Run(model, train, val, own, file, task, name=f"{name}, seed {seed}" if name else f"seed {seed}"))
    return runs
