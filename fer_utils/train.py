"""One training loop for all networks: data on the device, batched augmentation, resumable to the epoch.

The whole data set is 83 MB as uint8, so it is copied to the device once and every batch is cut from it there.
"""

import copy
import platform
import random
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fer_utils.augment import to_float
from fer_utils.checkpoints import TrainingError, read_checkpoint, require_same, signature, write_checkpoint
from fer_utils.config import TrainConfig
from fer_utils.optim import build_optimizer, learning_rate, lr_factor
from fer_utils.predict import predict_outputs
from fer_utils.tasks import Compare, Task, balanced_weights, classification


@dataclass
class FitResult:
    """What training gave. The model itself holds the weights of the best epoch on val.

    history: one row per epoch (epoch, lr, train_loss, train_accuracy, val_loss, val_accuracy, seconds), with the
    measure of the task in the place of "accuracy"; the training columns are measured while learning, with augmentation
    and dropout on; both losses include label smoothing. precision: the one that was used. task: what was learned.
    """

    history: pd.DataFrame
    precision: str
    task: Task

    @property
    def best_epoch(self) -> int:
        """The epoch with the best measure on val, counted from 1; the first of several equal ones."""
        return 1 + self.task.best(self.history[f"val_{self.task.measure}"])

    @property
    def train_seconds(self) -> float:
        """Seconds spent on training batches in all epochs, without validation."""
        return float(self.history.seconds.sum())


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers (torch: on every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def select_device(name: str = "auto") -> torch.device:
    """Take the GPU for "auto" when there is one; "cuda" without a GPU raises TrainingError, it never falls back.

    On a GPU fp32 then means fp32: convolutions may not round to TF32. What may be coarser is trained in bf16 anyway.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise TrainingError(f'device is {name!r}; it must be "auto", "cpu" or "cuda"')
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError('device "cuda" was asked for, but torch finds no GPU here; use device "auto" or "cpu"')
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    """The device as tables name it: the GPU's model, or the kind of processor with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


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
    """Train a network and leave the weights of its best epoch on val in it.

    train, val: (images (N,48,48) or (N,3,H,W) uint8, targets (N,...)): labels (N,) int64, or what else the task asks
    for, such as shares of the classes (N,7) float32.
    checkpoint: file to save to after every epoch and to resume from; a resumed run ends with the same weights as an
    uninterrupted one (bit for bit on the same CPU). on_epoch: called with each new row of the history; training ends
    early when it returns True. task: what is learned; None: to classify, with the loss that config describes.

    Raises TrainingError when the loss is no longer finite, when the GPU's memory does not suffice, or when the
    checkpoint belongs to another run.
    """
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last)
    train_images, train_targets, val_images = (torch.as_tensor(a).to(device) for a in (*train, val[0]))
    val_targets = torch.as_tensor(val[1])
    task = task or _classification(config, train[1], device)
    set_seed(config.seed)
    frozen = freeze(model, config)
    run = _Run(model, config, task, device, data=[zlib.crc32(np.ascontiguousarray(array)) for array in (*train, *val)])
    if not run.resume(checkpoint):
        run.precision = choose_precision(model, device) if config.precision == "auto" else config.precision
    try:
        while not run.finished():
            row = _epoch(run, (train_images, train_targets), (val_images, val_targets), checkpoint)
            run.add(row)
            if checkpoint:
                run.save(checkpoint)
            print(_progress_line(run.history, config.epochs, task), flush=True)
            if on_epoch and on_epoch(row):
                break
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU's memory does not suffice for batch_size {config.batch_size}; try {config.batch_size // 2}"
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        model.zero_grad(set_to_none=True)  # gradients take as much memory as the weights
    model.load_state_dict(run.best_weights)
    return FitResult(pd.DataFrame(run.history), run.precision, task)


def fit_seeds(
    build: Callable[[], nn.Module],
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    config: TrainConfig,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    checkpoint: Callable[[TrainConfig], Path] | None = None,
    task: Task | None = None,
) -> list[tuple[nn.Module, FitResult]]:
    """Train one config from several seeds, which decide initial weights, order, dropout and augmentation.

    build: makes a new model. checkpoint: gives the file of each run by its config; the rest as in fit. Returns the
    model and the result of each seed, in their order; a model that build made does not depend on the seeds before it.
    """
    fitted = []
    for seed in seeds:
        set_seed(seed)
        model, run = build(), replace(config, seed=seed)
        fitted.append((model, fit(model, train, val, run, device, checkpoint(run) if checkpoint else None, task=task)))
    return fitted


def _classification(config: TrainConfig, labels: np.ndarray, device: torch.device) -> Task:
    """The task that a config describes; class weights come from the training labels."""
    weights = balanced_weights(np.asarray(labels)).to(device) if config.class_weights == "balanced" else None
    return classification(config.label_smoothing, config.focal_gamma, weights)


def _epoch(
    run: "_Run",
    train: tuple[torch.Tensor, torch.Tensor],
    val: tuple[torch.Tensor, torch.Tensor],
    checkpoint: Path | None,
) -> dict[str, float]:
    """Train for an epoch, judge on val, and return the row of the history; TrainingError when a loss is not finite."""
    start, task = time.perf_counter(), run.task
    losses, measured = _train_epoch(run, *train)
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        raise _not_finite(losses[bad[0]], f"at step {int(bad[0]) + 1} of", run, checkpoint)
    seconds = time.perf_counter() - start
    val_images, val_targets = val
    val_outputs = torch.from_numpy(predict_outputs(run.judged, val_images, val_images.device))
    val_loss = task.loss(val_outputs, val_targets)
    if not torch.isfinite(val_loss):  # the last step has spoilt the weights
        raise _not_finite(val_loss, "on val after", run, checkpoint)
    return {
        "epoch": len(run.history) + 1,
        "lr": run.optimizer.param_groups[0]["lr"] / run.optimizer.param_groups[0]["lr_factor"],
        "train_loss": float(losses.mean()),
        f"train_{task.measure}": measured,
        "val_loss": float(val_loss),
        f"val_{task.measure}": float(task.measured(val_outputs, val_targets).mean()),
        "seconds": seconds,
    }


def _train_epoch(run: "_Run", images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float]:
    """One pass over the training data. Returns the loss of every step and the mean measure over all images seen.

    Nothing in the loop waits for the device: losses and measures are kept there until the end. The last, incomplete
    batch is dropped; each epoch shuffles anew, so every image gets its turn.
    """
    config, task, device = run.config, run.task, images.device
    set_modes(run.model, config)
    epoch = len(run.history)
    batch = min(config.batch_size, len(images))
    steps = len(images) // batch
    order = torch.randperm(len(images), device=device, generator=run.generator)
    mirrored = _sides(len(images), config.seed, epoch, device) if config.augment.alternate else None
    val_losses = [row["val_loss"] for row in run.history]
    losses = torch.zeros(steps, device=device)
    measured = torch.zeros((), device=device)
    for step in range(steps):
        lr = learning_rate(epoch * steps + step, config.epochs * steps, val_losses, config)
        for group in run.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        chosen = order[step * batch : (step + 1) * batch]
        mirror = None if mirrored is None else mirrored[chosen]
        inputs, wanted = task.augment(to_float(images[chosen]), targets[chosen], config.augment, run.generator, mirror)
        losses[step], outputs = train_step(
            run.model, run.optimizer, inputs, wanted, task.loss, run.precision, config.clip
        )
        if run.averaged is not None:
            update_average(run.averaged, run.model, config.ema, epoch * steps + step)
        measured += task.measured(outputs, wanted).sum()
    return losses.cpu(), float(measured) / (steps * batch)


def freeze(model: nn.Module, config: TrainConfig) -> list[nn.Parameter]:
    """Spare the gradients of what config.lr_factors freezes; returns these parameters, to be freed afterwards."""
    named = model.named_parameters()
    frozen = [parameter for name, parameter in named if parameter.requires_grad and not lr_factor(name, config)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def set_modes(model: nn.Module, config: TrainConfig) -> None:
    """Training mode, but for what is frozen: its norms keep their statistics, and its dropout is off."""
    model.train()
    for name, module in model.named_modules():
        if not lr_factor(name, config):
            module.training = False


def _sides(n: int, seed: int, epoch: int, device: torch.device) -> torch.Tensor:
    """(n,) bool: a coin for each image says whether it is mirrored in even epochs or in odd ones."""
    coins = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5
    return (coins ^ bool(epoch % 2)).to(device)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    loss_of: Compare,
    precision: str,
    clip: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward, loss, backward, update on one batch. Returns the loss () and the outputs (N,...), both detached.

    clip: largest norm of the gradient; 0: no limit.
    """
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = model(inputs.contiguous(memory_format=torch.channels_last)).float()
    loss = loss_of(outputs, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach(), outputs.detach()


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights and the statistics of norms a little towards those of the model, after step 0, 1, ...

    The decay grows from 0.1 to its value, so that the average soon forgets the random start.
    """
    tensors, means = (
        [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        for network in (model, averaged)
    )
    get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(means, tensors, None)


def choose_precision(model: nn.Module, device: torch.device) -> str:
    """Return "bf16" where the device calculates in it natively, else "fp32".

    On a CPU, networks with depthwise convolutions stay in fp32: these are slow in bf16 (EfficientNet-B0 took twice as
    long). Nothing is timed, so the same machine always trains in the same way.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    depthwise = any(layer.groups == layer.in_channels > 1 for layer in convolutions)
    return "bf16" if native and not depthwise else "fp32"


class _Run:
    """The part of a training run that changes, and that a checkpoint therefore holds."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, task: Task, device: torch.device, data: list[int]
    ) -> None:
        self.model, self.config, self.task = model, config, task
        self.optimizer = build_optimizer(model, config)
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.averaged = copy.deepcopy(model) if config.ema else None
        self.identity = signature(model) | asdict(config) | {"task": task.name, "data of train and val": data}
        self.history: list[dict] = []
        self.best_weights: dict[str, torch.Tensor] = {}
        self.precision = "fp32"

    @property
    def judged(self) -> nn.Module:
        """The model whose weights are judged on val: the average if there is one."""
        return self.model if self.averaged is None else self.averaged

    @property
    def best_epoch(self) -> int:
        """The epoch with the best measure on val so far, counted from 1."""
        return 1 + self.task.best([row[f"val_{self.task.measure}"] for row in self.history])

    def finished(self) -> bool:
        """Whether all epochs are done, or none of the last `patience` was the best."""
        epochs, patience = len(self.history), self.config.patience
        return epochs >= self.config.epochs or bool(patience and epochs and epochs - self.best_epoch >= patience)

    def add(self, row: dict) -> None:
        """Append an epoch to the history; keep its weights if it is the best on val so far."""
        self.history.append(row)
        if self.best_epoch == len(self.history):
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.judged.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        state = {
            "identity": self.identity,
            "history": self.history,
            "precision": self.precision,
            "weights": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.generator.device.type == "cuda" else None,
        }
        write_checkpoint(state, path)

    def resume(self, path: Path | None) -> bool:
        """Continue from a checkpoint if there is a whole one; False when there is none."""
        state = read_checkpoint(path) if path else None
        if state is None:
            return False
        require_same(self.identity, state.get("identity", {}), path)
        self.model.load_state_dict(state["weights"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.history, self.best_weights, self.precision = state["history"], state["best_weights"], state["precision"]
        print(f"resumed after epoch {len(self.history)} from {path.name}", flush=True)
        return True


def _not_finite(loss: torch.Tensor, where: str, run: _Run, checkpoint: Path | None) -> TrainingError:
    """What to raise for a loss () that is NaN or infinite."""
    kept = f"; the checkpoint of epoch {len(run.history)} is kept" if checkpoint and run.history else ""
    return TrainingError(
        f"the loss is {float(loss)} {where} epoch {len(run.history) + 1}: "
        f"lower the learning rate (lr is {run.config.lr}){kept}"
    )


def _progress_line(history: list[dict], epochs: int, task: Task) -> str:
    row, done = history[-1], len(history)
    left = (epochs - done) * np.mean([r["seconds"] for r in history])
    left_text = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    train, val = (task.shown.format(row[f"{split}_{task.measure}"]) for split in ("train", "val"))
    return (
        f"epoch {done:3d}/{epochs}  loss {row['train_loss']:.4f}  train {train}  val {val}  "
        f"{row['seconds']:.1f} s  left {left_text}"
    )
