"""One training loop for all networks: data on the device, batched augmentation, resumable to the epoch.

The whole data set is 83 MB as uint8, so it is copied to the device once and every batch is cut from it there.
"""

import copy
import hashlib
import math
import os
import pickle
import platform
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from fer_utils.augment import Augment, to_float
from fer_utils.data import EMOTIONS
from fer_utils.predict import predict_outputs
from fer_utils.tasks import Compare, Task, classification


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one plain sentence that says why and what to do."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a training run, apart from the model and the data.

    lr is the peak of a one-cycle schedule (Smith & Topin 2017): linear warm-up over `warmup` of all steps, then half a
    cosine down to zero. The optimizer is SGD with Nesterov momentum. label_smoothing: Szegedy et al. 2016; it counts
    for classifiers only.
    precision: "fp32", "bf16", or "auto" for whichever is faster for this model on this device, measured at the start.
    """

    epochs: int = 24
    batch_size: int = 128
    lr: float = 0.05
    warmup: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    augment: Augment = field(default_factory=Augment)
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot train: ValueError names the field."""
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"TrainConfig.{name} is {value!r}; it must be a whole number, 1 or more")
        if isinstance(self.lr, str) or not self.lr > 0:
            raise ValueError(f"TrainConfig.lr is {self.lr!r}; it must be a number above 0")
        for name in ("warmup", "momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name} is {getattr(self, name)!r}; it must be at least 0 and below 1")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f'TrainConfig.precision is {self.precision!r}; it must be "auto", "fp32" or "bf16"')


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
    """Take the GPU for "auto" when there is one; "cuda" without a GPU raises TrainingError, it never falls back."""
    if name not in ("auto", "cpu", "cuda"):
        raise TrainingError(f'device is {name!r}; it must be "auto", "cpu" or "cuda"')
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError('device "cuda" was asked for, but torch finds no GPU here; use device "auto" or "cpu"')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The device as tables name it: the GPU's model, or the kind of processor with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def one_cycle_lr(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of one step (0-based): warm-up from lr/25, peak `lr`, then half a cosine to zero."""
    warmup_steps = config.warmup * total_steps
    if step < warmup_steps:
        return config.lr * (1 / 25 + (1 - 1 / 25) * step / warmup_steps)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2


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

    train, val: (images (N,48,48) uint8, targets (N,...)): labels (N,) int64, or what else the task asks for.
    checkpoint: file to save to after every epoch and to resume from; a resumed run ends with the same weights as an
    uninterrupted one (bit for bit on the same CPU). on_epoch: called with each new row of the history; training ends
    early when it returns True. task: what is learned; None: to classify, with the label smoothing of config.

    Raises TrainingError when the loss is no longer finite, when the GPU's memory does not suffice, or when the
    checkpoint belongs to another run.
    """
    device, task = torch.device(device), task or classification(config.label_smoothing)
    model.to(device, memory_format=torch.channels_last)
    train_images, train_targets, val_images = (torch.as_tensor(a).to(device) for a in (*train, val[0]))
    val_targets = torch.as_tensor(val[1])
    set_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=True
    )
    data = [zlib.crc32(np.ascontiguousarray(array)) for array in train]
    run = _Run(model, optimizer, generator, config, task, data)
    if not run.resume(checkpoint):
        run.precision = fastest_precision(model, config, device) if config.precision == "auto" else config.precision
    while len(run.history) < config.epochs:
        start = time.perf_counter()
        try:
            losses, measured = _train_epoch(run, train_images, train_targets)
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(
                f"the GPU's memory does not suffice for batch_size {config.batch_size}; try {config.batch_size // 2}"
            ) from error
        _require_finite(losses, run, checkpoint)
        seconds = time.perf_counter() - start
        val_outputs = torch.from_numpy(predict_outputs(model, val_images, device))
        row = {
            "epoch": len(run.history) + 1,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": float(losses.mean()),
            f"train_{task.measure}": measured,
            "val_loss": float(task.loss(val_outputs, val_targets)),
            f"val_{task.measure}": float(task.measured(val_outputs, val_targets).mean()),
            "seconds": seconds,
        }
        run.add(row)
        if checkpoint:
            run.save(checkpoint)
        print(_progress_line(run.history, config.epochs, task), flush=True)
        if on_epoch and on_epoch(row):
            break
    model.load_state_dict(run.best_weights)
    return FitResult(pd.DataFrame(run.history), run.precision, task)


def _train_epoch(run: "_Run", images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float]:
    """One pass over the training data. Returns the loss of every step and the mean measure over all images seen.

    Nothing in the loop waits for the device: losses and measures are kept there until the end. The last, incomplete
    batch is dropped; each epoch shuffles anew, so every image gets its turn.
    """
    config, model, task, device = run.config, run.model, run.task, images.device
    model.train()
    batch = min(config.batch_size, len(images))
    steps = len(images) // batch
    order = torch.randperm(len(images), device=device, generator=run.generator)
    losses = torch.zeros(steps, device=device)
    measured = torch.zeros((), device=device)
    for step in range(steps):
        lr = one_cycle_lr(len(run.history) * steps + step, config.epochs * steps, config)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        chosen = order[step * batch : (step + 1) * batch]
        inputs, wanted = task.augment(to_float(images[chosen]), targets[chosen], config.augment, run.generator)
        loss, outputs = train_step(model, run.optimizer, inputs, wanted, task.loss, run.precision)
        losses[step] = loss
        measured += task.measured(outputs, wanted).sum()
    return losses.cpu(), float(measured) / (steps * batch)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    loss_of: Compare,
    precision: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward, loss, backward, update on one batch. Returns the loss () and the outputs (N,...), both detached."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = model(inputs.contiguous(memory_format=torch.channels_last)).float()
    loss = loss_of(outputs, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach(), outputs.detach()


def fastest_precision(model: nn.Module, config: TrainConfig, device: torch.device, steps: int = 8) -> str:
    """Return "bf16" where it saves at least a fifth of a training step of this model on this device, else "fp32".

    A GPU with native bf16 needs no measurement. On a CPU it depends on the model, so steps on noise are timed with
    copies, in turns, and the fastest counts: other work on the machine then hardly matters. The measurement changes
    neither the model nor any random number that training uses.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    noise = torch.Generator().manual_seed(0)
    inputs = torch.randn(config.batch_size, 1, 48, 48, generator=noise)
    twins = {precision: copy.deepcopy(model).train() for precision in ("fp32", "bf16")}
    seconds: dict[str, list[float]] = {precision: [] for precision in twins}
    with torch.random.fork_rng(devices=[]):
        for _ in range(steps):
            for precision, twin in twins.items():
                start = time.perf_counter()
                train_step(twin, torch.optim.SGD(twin.parameters(), lr=0.0), inputs, inputs, _mean_square, precision)
                seconds[precision].append(time.perf_counter() - start)
    return "bf16" if min(seconds["bf16"]) < 0.8 * min(seconds["fp32"]) else "fp32"


def _mean_square(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """A loss for any output: only the time it takes to pass it back matters."""
    return outputs.square().mean()


def checkpoint_file(folder: Path, label: str, config: TrainConfig, fingerprint: str) -> Path:
    """Where a run keeps its checkpoint: the name changes with the settings and the data, so runs never mix.

    label: what distinguishes models, e.g. "baseline_cnn". fingerprint: of the data (FER2013.fingerprint).
    """
    digest = hashlib.sha256(f"{config}{fingerprint}".encode()).hexdigest()[:10]
    return folder / f"{label}-seed{config.seed}-{digest}.pt"


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a trained model, with its architecture and what its outputs mean, for load_weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    torch.save({"signature": _signature(model), "weights": model.state_dict()}, fresh)
    os.replace(fresh, path)


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Put saved weights into a model of the same architecture, and set it to evaluation mode.

    Raises TrainingError when the file is missing, damaged, or of another architecture or class order.
    """
    state = _read_weights(path)
    _require_same(_signature(model), state["signature"], path)
    model.load_state_dict(state["weights"])
    return model.eval()


def load_backbone(model: nn.Module, path: Path) -> nn.Module:
    """Let a model start from the trained backbone of another, as save_weights wrote it; its head stays as it is.

    Both must have a backbone under that name, with the same stem and tensors. Raises TrainingError when they do not, or
    when the file is missing or damaged.
    """
    state = _read_weights(path)
    there, here = _backbone(state["weights"]), _backbone(model.state_dict())
    if not there or not here:
        where = path if not there else f"this {type(model).__name__}"
        raise TrainingError(f'there is no "backbone" in {where}; both networks must be made of a backbone and a head')
    for_both = ("stem", *here, *there)
    expected, found = _signature(model), state["signature"]
    _require_same({key: expected.get(key) for key in for_both}, {key: found.get(key) for key in for_both}, path)
    model.load_state_dict(there, strict=False)
    return model


def _backbone(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}


def _read_weights(path: Path) -> dict:
    """What save_weights wrote; TrainingError when the file is missing or damaged."""
    state = _read(path) if path.exists() else None
    if not isinstance(state, dict) or not state.keys() >= {"signature", "weights"}:
        raise TrainingError(f"{path} is missing or damaged; run the notebook that trains this model to make it")
    return state


class _Run:
    """The part of a training run that changes, and that a checkpoint therefore holds."""

    def __init__(self, model, optimizer, generator, config, task, data: list[int]) -> None:
        self.model, self.optimizer, self.generator, self.config, self.task = model, optimizer, generator, config, task
        self.identity = _signature(model) | asdict(config) | {"task": task.name, "training data": data}
        self.history: list[dict] = []
        self.best_weights: dict[str, torch.Tensor] = {}
        self.precision = "fp32"

    def add(self, row: dict) -> None:
        """Append an epoch to the history; keep its weights if it is the best on val so far."""
        self.history.append(row)
        if self.task.best([r[f"val_{self.task.measure}"] for r in self.history]) == len(self.history) - 1:
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint; the one before it stays beside it as *.previous, should this one be damaged."""
        state = {
            "identity": self.identity,
            "history": self.history,
            "precision": self.precision,
            "weights": self.model.state_dict(),
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.generator.device.type == "cuda" else None,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        torch.save(state, fresh)
        if path.exists():
            os.replace(path, _previous(path))
        os.replace(fresh, path)

    def resume(self, path: Path | None) -> bool:
        """Continue from a checkpoint if there is a whole one; False when there is none."""
        state = _read_checkpoint(path) if path else None
        if state is None:
            return False
        _require_same(self.identity, state["identity"], path)
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.history, self.best_weights, self.precision = state["history"], state["best_weights"], state["precision"]
        print(f"resumed after epoch {len(self.history)} from {path.name}", flush=True)
        return True


def _read_checkpoint(path: Path) -> dict | None:
    """The newest readable checkpoint: `path`, else the one saved before it; None when there is neither."""
    existing = [candidate for candidate in (path, _previous(path)) if candidate.exists()]
    return next((state for state in map(_read, existing) if state is not None), None)


def _read(path: Path) -> dict | None:
    """A file of torch.save; None, and a printed line, when it is damaged.

    weights_only refuses pickles that would run code: such a file counts as damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        print(f"{path.name} cannot be read ({type(error).__name__}) and is ignored", flush=True)
        return None


def _previous(path: Path) -> Path:
    return path.with_suffix(".previous")


def _signature(model: nn.Module) -> dict:
    """What must agree before weights are put into a model: its class and stem, what its outputs mean, all shapes."""
    return {
        "architecture": type(model).__name__,
        "stem": getattr(getattr(model, "backbone", None), "stem", None),
        "classes": list(getattr(model, "outputs", EMOTIONS)),
        **{name: list(tensor.shape) for name, tensor in model.state_dict().items()},
    }


def _require_same(expected: dict, found: dict, path: Path) -> None:
    """Raise TrainingError with the first differences between two flat descriptions."""
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if keys:
        differences = "; ".join(f"{key}: {found.get(key)} there, {expected.get(key)} here" for key in keys[:3])
        raise TrainingError(f"{path} belongs to another run ({differences}); delete it or use its settings")


def _require_finite(losses: torch.Tensor, run: _Run, checkpoint: Path | None) -> None:
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        kept = f"; the checkpoint of epoch {len(run.history)} is kept" if checkpoint and run.history else ""
        raise TrainingError(
            f"the loss is {float(losses[bad[0]])} at step {int(bad[0]) + 1} of epoch {len(run.history) + 1}: "
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
