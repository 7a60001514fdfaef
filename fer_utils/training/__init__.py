"""Training: settings, runs, the loop, checkpoints, and the devices it runs on."""

from fer_utils.training.config import TrainConfig
from fer_utils.training.loop import fit, fit_all
from fer_utils.training.run import FitResult, Run, seed_runs

__all__ = ["FitResult", "Run", "TrainConfig", "fit", "fit_all", "seed_runs"]
