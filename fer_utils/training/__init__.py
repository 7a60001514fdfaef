"""Training: its settings, its loop, its checkpoints, and where it runs."""

from fer_utils.training.config import TrainConfig
from fer_utils.training.loop import FitResult, Run, fit, fit_all, seed_runs

__all__ = ["FitResult", "Run", "TrainConfig", "fit", "fit_all", "seed_runs"]
