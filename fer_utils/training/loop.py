"""The training loop for all networks: data on the device, batched augmentation, resumable after every epoch.

All of FER2013 takes 83 MB as uint8, so it is copied to the device once and batches are cut from it there.
"""

import copy
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fer_utils.device import choose_precision, set_seed
from fer_utils.errors import TrainingError
from fer_utils.models.weights import require_same, signature
from fer_utils.predict import outputs_on_device
from fer_utils.training import cluster
from fer_utils.training.checkpoints import drop_previous, read_checkpoint, write_checkpoint
from fer_utils.training.config import TrainConfig
from fer_utils.training.optim import build_optimizer, learning_rate, lr_factor
from fer_utils.training.run import FitResult, Run, results_of
from fer_utils.training.step import TrainingStep
from fer_utils.training.streams import open_stream
from fer_utils.training.tasks import Task, balanced_weights, classification

AT_ONCE = 6  # runs side by side on a GPU: one for each of the six seeds that a comparison of two methods needs
STEPS_PER_TURN = 4  # steps before the next run gets its turn; switching takes a tenth of a millisecond
DEADLINE = "FER_DEADLINE"  # environment variable: Unix time in seconds at which runs with a checkpoint stop
LEAST_STEPS = 300  # capturing a step takes 1-3 s on a GPU and saves about 10 ms per step: fewer steps do not pay off
SAVE_SECONDS = 30  # least time between two checkpoints on a GPU, where an epoch may take less time than a checkpoint


class OutOfTime(TrainingError):
    """Training reached its deadline and stopped after an epoch; it can resume from its checkpoint."""


def fit(
    model: nn.Module,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    config: TrainConfig,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict], bool | None] | None = None,
    task: Task | None = None,
) -> FitResult:
    """Train a network, which ends with the weights of its best epoch on val; the arguments are those of `Run`.

    Raises TrainingError if the loss is not finite, the GPU runs out of memory, or the checkpoint belongs to another
    run.
    """
    return fit_all([Run(model, train, val, config, checkpoint, task, on_epoch)], device)[0]


def fit_all(runs: Sequence[Run], device: torch.device | str = "cpu", at_once: int | None = None) -> list[FitResult]:
    """Train several networks and return their results in the order of the runs.

    On a CPU the runs train one after another, on a GPU side by side. at_once: the most runs side by side; None: up to
    AT_ONCE, as long as they fit into three quarters of the free memory (validation needs the rest). The weights of a
    run do not depend on the other runs. Its seconds do, because they are wall-clock time on a shared GPU.

    If a run fails, the reason is printed and the other runs go on. At the end the first failure is raised as
    TrainingError (see `fit`); the other runs keep their trained models and checkpoints.

    If FER_RAY is set, a Ray cluster trains the runs, one per GPU (cluster.py), and at_once has no effect. Runs with
    on_epoch are still trained here.
    """
    device = torch.device(device)
    if cluster.can_take(runs):
        return cluster.fit_all(runs, device, fit_all)
    arrays, room = ArraysOnDevice(device), Room(device, at_once)
    waiting = deque(enumerate(runs))
    active: dict[int, Training] = {}
    ended: dict[int, FitResult | TrainingError] = {}
    try:
        while waiting or active:
            if waiting and room.for_one_more(len(active), len(ended)):
                position, run = waiting.popleft()
                active[position] = Training(run, device, arrays, prefix=f"{run.name}: " if run.name else "")
            for position, training in list(active.items()):
                outcome = advance(training, len(active))
                if outcome is not None:
                    ended[position] = outcome
                    active.pop(position).close()
                    if isinstance(outcome, TrainingError) and len(runs) > 1:
                        print(f"{training.prefix}{outcome}; the other runs go on", flush=True)
    finally:
        for training in active.values():
            training.close()
    return results_of(ended[position] for position in range(len(runs)))


def advance(training: "Training", active: int) -> FitResult | TrainingError | None:
    """Let a run queue its next work. Returns its result or its error once it has ended, None before.

    active: number of runs that share the device.
    """
    try:
        return training.advance()
    except TrainingError as error:
        return error
    except torch.cuda.OutOfMemoryError as error:
        size = training.run.config.batch_size
        runs, fewer = (f"{active} runs at once with ", f"at_once={active - 1} or ") if active > 1 else ("", "")
        advice = f"try {fewer}batch_size {max(1, size // 2)}"
        failure = TrainingError(f"the GPU has too little memory for {runs}batch_size {size}; {advice}")
        failure.__cause__ = error
        return failure


class Room:
    """Decides whether a device has room for one more run."""

    def __init__(self, device: torch.device, at_once: int | None) -> None:
        """at_once: the most runs side by side; None: decided by the free memory."""
        self.device, self.at_once = device, at_once
        self.free_at_first = self._free()
        self.last_counts: tuple[int, int] | None = None  # active and ended runs at the last check

    def _free(self) -> int:
        """Return the free bytes on the GPU."""
        if self.device.type == "cpu":
            return 0
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def for_one_more(self, active: int, ended: int) -> bool:
        """Check for room, given the numbers of active and ended runs.

        If neither number has changed since the last call, the answer is no: reading the free memory takes time.
        """
        if active == 0 or self.device.type == "cpu":
            return active == 0
        if self.at_once is not None or active >= AT_ONCE:
            return active < (self.at_once or AT_ONCE)
        if self.last_counts == (active, ended):
            return False
        self.last_counts = active, ended
        used_by_each = (self.free_at_first - self._free()) / active
        return (active + 1) * used_by_each <= 0.75 * self.free_at_first


class ArraysOnDevice:
    """Copies arrays to the device and computes their checksums; an array that several runs share is copied once."""

    def __init__(self, device: torch.device) -> None:
        """device: where the tensors go."""
        self.device = device
        self.copies: dict[int, tuple[np.ndarray, torch.Tensor, int]] = {}  # the array stays, so that its id stays valid

    def __call__(self, array: np.ndarray) -> tuple[torch.Tensor, int]:
        """Return the tensor on the device and the checksum of the array."""
        if id(array) not in self.copies:
            tensor = torch.as_tensor(array).to(self.device)
            self.copies[id(array)] = array, tensor, zlib.crc32(np.ascontiguousarray(array).data)
        return self.copies[id(array)][1:]


def _classification(config: TrainConfig, labels: np.ndarray, device: torch.device) -> Task:
    """Make the classification task that a config describes; class weights come from the training labels."""
    weights = balanced_weights(np.asarray(labels)).to(device) if config.class_weights == "balanced" else None
    return classification(config.label_smoothing, config.focal_gamma, weights)


def freeze(model: nn.Module, config: TrainConfig) -> list[nn.Parameter]:
    """Switch off gradients of the parameters that config.lr_factors freezes; returns them, to be unfrozen later."""
    named = model.named_parameters()
    frozen = [parameter for name, parameter in named if parameter.requires_grad and not lr_factor(name, config)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def set_modes(model: nn.Module, config: TrainConfig) -> None:
    """Set training mode, except for frozen modules: their norms keep their statistics, and their dropout is off."""
    model.train()
    for name, module in model.named_modules():
        if not lr_factor(name, config):
            module.training = False


class Training:
    """A run in progress: the state that changes during training, which is also the content of a checkpoint."""

    def __init__(self, run: Run, device: torch.device, arrays: ArraysOnDevice, prefix: str) -> None:
        """arrays: copies data to the device. prefix: printed before every line of progress."""
        self.run, self.model, self.config, self.prefix = run, run.model, run.config, prefix
        self.task = run.task or _classification(run.config, run.train[1], device)
        self.device, self.arrays = device, arrays
        self.stream = open_stream(device)
        self.history: list[dict] = []
        self.best_weights: dict[str, torch.Tensor] = {}
        self.frozen: list[nn.Parameter] = []
        self._work = self._train()

    def advance(self) -> FitResult | None:
        """Queue the next piece of work; returns the result once the run has ended, None before."""
        with self.stream.active():
            return next(self._work)

    def close(self) -> None:
        """Unfreeze the model and free the memory of the run."""
        self._work.close()
        self.stream.close()
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.model.zero_grad(set_to_none=True)  # gradients take as much memory as the weights

    def _train(self) -> Generator[FitResult | None, None, None]:
        """Train from the first epoch to the last. Yields None when other runs may take a turn, finally the result."""
        self._prepare()
        started, seconds = time.time(), 0.0
        while not self.finished():
            self._stop_in_time(time.time() + seconds)
            row = yield from self._epoch()
            self.add(row)
            self._save_if_due()
            print(self.prefix + _progress_line(self.history, self.config.epochs, self.task), flush=True)
            if self.run.on_epoch and self.run.on_epoch(row):
                break
            started, seconds = time.time(), time.time() - started
        self._save_if_due(at_end=True)
        if self.run.checkpoint and self.finished():
            drop_previous(self.run.checkpoint)
        self.model.load_state_dict(self.best_weights)
        yield FitResult(pd.DataFrame(self.history), self.precision, self.task)

    def _prepare(self) -> None:
        """Prepare the first epoch: seed, optimizer, checkpoint of an earlier attempt, training step."""
        (images, a), (targets, b), (self.val_images, c), (self.val_targets, d) = (
            self.arrays(array) for array in (*self.run.train, *self.run.val)
        )
        self.model.to(self.device).to(memory_format=torch.channels_last)
        set_seed(self.config.seed)
        self.frozen = freeze(self.model, self.config)
        self.optimizer = build_optimizer(self.model, self.config)
        self.generator = torch.Generator(self.device).manual_seed(self.config.seed)
        self.ema_model = copy.deepcopy(self.model) if self.config.ema else None
        about = {"task": self.task.name, "data of train and val": [a, b, c, d]}
        self.identity = signature(self.model) | asdict(self.config) | about
        if not self.resume(self.run.checkpoint):
            choice = self.config.precision
            self.precision = choose_precision(self.model, self.device) if choice == "auto" else choice
        self.saved_epoch, self.saved_at = len(self.history), time.monotonic()
        self.step = TrainingStep(
            self.model,
            self.ema_model,
            self.optimizer,
            self.task,
            self.config,
            self.precision,
            images,
            targets,
            self.generator,
        )
        self.next_step: Callable[[], None] | None = None

    def _epoch(self) -> Generator[None, None, dict]:
        """Train for one epoch, validate, and return the row of the history; TrainingError if a loss is not finite."""
        epoch, val_losses = len(self.history), [row["val_loss"] for row in self.history]
        set_modes(self.model, self.config)
        self.step.begin_epoch(epoch, val_losses)
        augment = self.config.augment_in(epoch)
        if augment != self.step.augment:
            self.step.augment, self.next_step = augment, None  # a captured step would go on with the old one
        if self.next_step is None:
            steps_left = (self.config.epochs - epoch) * self.step.steps
            self.next_step = self.stream.capture(self.step) if steps_left >= LEAST_STEPS else self.step
        start = self.stream.record_event()
        for number in range(1, self.step.steps + 1):
            self.next_step()
            if number % STEPS_PER_TURN == 0:
                yield
        end = self.stream.record_event()
        val_loss, val_metric = self._validate()
        validated = self.stream.record_event()
        while not self.stream.is_done(validated):  # reading a number before it is ready would make other runs wait
            yield
        losses = self.step.losses.cpu()  # (steps,)
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            raise self._not_finite(losses[bad[0]], f"at step {int(bad[0]) + 1} of")
        if not torch.isfinite(val_loss):  # the last step has ruined the weights
            raise self._not_finite(val_loss, "on val after")
        last, total = (n * self.step.steps for n in (epoch + 1, self.config.epochs))
        return {
            "epoch": epoch + 1,
            "lr": learning_rate(last - 1, total, val_losses, self.config),
            "train_loss": float(losses.mean()),
            f"train_{self.task.metric}": float(self.step.metric_sum) / (self.step.steps * self.step.batch_size),
            "val_loss": float(val_loss),
            f"val_{self.task.metric}": float(val_metric),
            "seconds": self.stream.seconds(start, end),
        }

    @torch.inference_mode()
    def _validate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute loss () and mean metric () on val, as tensors on the device.

        A GPU validates in the precision of training: fp32 would take a large share of the time of an epoch.
        """
        on_cpu = self.device.type == "cpu"
        batch_size, precision = (512, "fp32") if on_cpu else (2048, self.precision)
        outputs = outputs_on_device(self.eval_model, self.val_images, self.device, batch_size, precision=precision)
        return self.task.loss(outputs, self.val_targets), self.task.metric_fn(outputs, self.val_targets).mean()

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated and kept: the EMA model if there is one."""
        return self.model if self.ema_model is None else self.ema_model

    @property
    def best_epoch(self) -> int:
        """The epoch with the best metric on val so far, counted from 1."""
        return 1 + self.task.best([row[f"val_{self.task.metric}"] for row in self.history])

    def finished(self) -> bool:
        """Check whether all epochs are done, or the last `patience` epochs brought no improvement."""
        epochs, patience = len(self.history), self.config.patience
        return epochs >= self.config.epochs or bool(patience and epochs and epochs - self.best_epoch >= patience)

    def add(self, row: dict) -> None:
        """Append an epoch to the history; keep its weights on the device if it is the best on val so far."""
        self.history.append(row)
        if self.best_epoch == len(self.history):
            self.best_weights = {k: v.detach().clone() for k, v in self.eval_model.state_dict().items()}

    def _stop_in_time(self, end: float) -> None:
        """Save and raise OutOfTime if another epoch, which would end at time `end`, would miss the deadline."""
        if self.run.checkpoint and end > float(os.environ.get(DEADLINE, "inf")):
            self._save_if_due(at_end=True)
            done = f"after epoch {len(self.history)} of {self.config.epochs}"
            raise OutOfTime(f"stopped {done}, because the time is up; run it again to continue from there")

    def _save_if_due(self, at_end: bool = False) -> None:
        """Write a checkpoint after a new epoch; on a GPU only if the last one is old enough, or at the end."""
        is_new = len(self.history) > self.saved_epoch
        is_due = self.device.type == "cpu" or at_end or time.monotonic() - self.saved_at >= SAVE_SECONDS
        if self.run.checkpoint and is_new and is_due:
            self.save(self.run.checkpoint)
            self.saved_epoch, self.saved_at = len(self.history), time.monotonic()

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        state = {
            "identity": self.identity,
            "history": self.history,
            "precision": self.precision,
            "weights": self.model.state_dict(),
            "averaged": None if self.ema_model is None else self.ema_model.state_dict(),
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            **self.stream.rng_state(),
        }
        write_checkpoint(state, path)

    def resume(self, path: Path | None) -> bool:
        """Continue from a checkpoint; returns False if there is no readable one."""
        if path is None or (state := read_checkpoint(path)) is None:
            return False
        require_same(self.identity, state.get("identity", {}), path)
        there = "cpu" if state["cuda_rng"] is None else "cuda"
        require_same({"device": self.device.type}, {"device": there}, path)  # CPU and GPU draw other random numbers
        self.model.load_state_dict(state["weights"])
        if self.ema_model is not None:
            self.ema_model.load_state_dict(state["averaged"])
        settings = self.optimizer.state_dict()["param_groups"]  # the config sets them, not the checkpoint
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": settings})
        self.generator.set_state(state["generator"])
        self.stream.set_rng_state(state)
        self.history, self.best_weights, self.precision = state["history"], state["best_weights"], state["precision"]
        print(f"{self.prefix}resumed after epoch {len(self.history)} from {path.name}", flush=True)
        return True

    def _not_finite(self, loss: torch.Tensor, where: str) -> TrainingError:
        """Make the error for a loss () that is NaN or infinite."""
        kept = (
            f"; the checkpoint of epoch {self.saved_epoch} is kept" if self.run.checkpoint and self.saved_epoch else ""
        )
        return TrainingError(
            f"the loss is {float(loss)} {where} epoch {len(self.history) + 1}: "
            f"lower the learning rate (lr is {self.config.lr}){kept}"
        )


def _progress_line(history: list[dict], epochs: int, task: Task) -> str:
    """Summarize the last epoch in one line, with an estimate of the time left."""
    row, done = history[-1], len(history)
    left = (epochs - done) * np.mean([r["seconds"] for r in history])
    left_text = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    train, val = (task.format.format(row[f"{split}_{task.metric}"]) for split in ("train", "val"))
    return (
        f"epoch {done:3d}/{epochs}  loss {row['train_loss']:.4f}  train {train}  val {val}  "
        f"{row['seconds']:.1f} s  left {left_text}"
    )
