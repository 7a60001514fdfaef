"""One training step that uses only tensors on the device and never waits for the device.

A GPU is much faster than the Python code that launches its kernels, so nothing should be copied or read between two
steps. Everything that changes from step to step (the images of the batch, the learning rate) is therefore stored in
tables on the device, once per epoch, and losses are collected there. Such a step can be captured once and replayed
(streams.py).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fer_utils.augment import to_float
from fer_utils.data.constants import EMOTIONS
from fer_utils.training.config import TrainConfig
from fer_utils.training.optim import ema_weight, learning_rate
from fer_utils.training.tasks import Compare, Task


class TrainingStep:
    """One call trains on one batch: augment, forward, loss, backward, clip, update, moving average.

    Call begin_epoch, then the object itself `steps` times. The results are in `losses` (steps,) and `metric_sum` ().
    """

    def __init__(
        self,
        model: nn.Module,
        ema_model: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        task: Task,
        config: TrainConfig,
        precision: str,
        images: torch.Tensor,
        targets: torch.Tensor,
        generator: torch.Generator,
    ) -> None:
        """Keep everything on one device; the learning rates of the optimizer become tensors that the step sets.

        images: (N,48,48) or (N,3,H,W) uint8; targets: (N,...). precision: "fp32" or "bf16". generator: draws the order
        of the images and the augmentation.
        """
        self.model, self.ema_model, self.optimizer = model, ema_model, optimizer
        self.task, self.config, self.precision = task, config, precision
        self.images, self.targets, self.generator = images, targets, generator
        self.augment = config.augment
        self.batch_size = min(config.batch_size, len(images))
        self.steps = len(images) // self.batch_size
        device, groups = images.device, optimizer.param_groups
        # Fused optimizers on a GPU need float32 rates. On a CPU float64 is as exact as Python's own floats.
        real = torch.float64 if device.type == "cpu" else torch.float32
        # Tables with one row per step of the epoch: row numbers of the images, and rates as in self.rates.
        self.batches = torch.zeros(self.steps, self.batch_size, dtype=torch.long, device=device)  # (steps,B)
        self.schedule = torch.zeros(self.steps, len(groups) + 1, dtype=real, device=device)  # (steps,groups+1)
        # With Augment.alternate: which images to mirror in this epoch, (N,).
        self.mirrored = torch.zeros(len(images), dtype=torch.bool, device=device) if config.augment.alternate else None
        # State that a step reads and changes.
        self.position = torch.zeros(1, dtype=torch.long, device=device)  # (1,) number of the next step
        self.rates = torch.zeros(len(groups) + 1, dtype=real, device=device)  # learning rate per group, then EMA weight
        self.losses = torch.zeros(self.steps, device=device)  # (steps,)
        self.metric_sum = torch.zeros((), device=device)  # ()
        for group, rate in zip(groups, self.rates, strict=False):
            group["lr"] = rate  # a view: the step changes it in place

    def begin_epoch(self, epoch: int, val_losses: Sequence[float] = ()) -> None:
        """Shuffle, and fill the tables for an epoch, counted from 0. val_losses: of the epochs so far, for "plateau".

        The last, incomplete batch is dropped. Every epoch shuffles anew, so no image is left out for long.
        """
        n = len(self.images)
        order = self._order()  # (N,)
        self.batches.copy_(order[: self.steps * self.batch_size].view_as(self.batches))
        rows = [self._rates(epoch, step, val_losses) for step in range(self.steps)]
        self.schedule.copy_(torch.tensor(rows, dtype=torch.float64))
        if self.mirrored is not None:
            self.mirrored.copy_(sides(n, self.config.seed, epoch))
        for counter in (self.position, self.losses, self.metric_sum):
            counter.zero_()

    def _order(self) -> torch.Tensor:
        """Return row numbers (N,) of the images of an epoch, see TrainConfig.sampling."""
        n, device = len(self.images), self.images.device
        if self.config.sampling == "shuffle":
            return torch.randperm(n, device=device, generator=self.generator)
        if self.targets.dim() != 1:
            raise ValueError('TrainConfig.sampling "balanced" needs labels (N,) as targets')
        # bincount would wait for the device, because the size of its result depends on the labels.
        counts = F.one_hot(self.targets, len(EMOTIONS)).sum(0)  # (7,)
        probabilities = 1 / counts.double()[self.targets]  # (N,)
        return torch.multinomial(probabilities, n, replacement=True, generator=self.generator)

    def _rates(self, epoch: int, step: int, val_losses: Sequence[float]) -> list[float]:
        """Return a row of the schedule: the learning rate of every group, then the weight of the moving average."""
        number, total = epoch * self.steps + step, self.config.epochs * self.steps
        lr = learning_rate(number, total, val_losses, self.config)
        return [lr * group["lr_factor"] for group in self.optimizer.param_groups] + [ema_weight(number, self.config)]

    def __call__(self) -> None:
        """Train on the next batch of the epoch.

        No line here may read the value of a tensor, because Python would then wait for the GPU.
        """
        self.rates.copy_(self.schedule.index_select(0, self.position)[0])  # (groups+1,)
        inputs, targets = self.next_batch()  # (B,1,48,48), (B,...)
        loss, outputs = train_step(
            self.model, self.optimizer, inputs, targets, self.task.loss, self.precision, self.config.clip
        )
        if self.ema_model is not None:
            update_ema(self.ema_model, self.model, self.rates[-1])
        self.losses.index_copy_(0, self.position, loss.view(1))
        self.metric_sum += self.task.metric_fn(outputs, targets).sum()
        self.position += 1

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the augmented images (B,1,48,48) and the targets (B,...) of the next step."""
        rows = self.batches.index_select(0, self.position)[0]  # (B,)
        mirror = None if self.mirrored is None else self.mirrored[rows]  # (B,)
        images, targets = to_float(self.images[rows]), self.targets[rows]  # (B,1,48,48), (B,...)
        return self.task.augment(images, targets, self.augment, self.generator, mirror)

    def warm_up(self, calls: int = 3) -> None:
        """Make a few steps and undo them, so that everything that the first call sets up exists.

        Afterwards weights, optimizer, moving average, counters and the generator are as before, so the result of
        training does not change. Dropout draws from the default generator, which the caller must restore.
        """
        before = {key: tensor.clone() for key, tensor in self.state_tensors().items()}
        generator_state = self.generator.get_state()
        for _ in range(calls):
            self.position.zero_()  # an epoch may have a single step
            self()
        for key, tensor in self.state_tensors().items():  # tensors that the first step created start at zero
            tensor.copy_(before[key]) if key in before else tensor.zero_()
        self.generator.set_state(generator_state)

    def state_tensors(self) -> dict[tuple, torch.Tensor]:
        """Return all tensors that a step changes."""
        state: dict[tuple, torch.Tensor] = {
            ("counter", name): getattr(self, name) for name in ("position", "losses", "metric_sum")
        }
        for name, network in (("model", self.model), ("ema", self.ema_model)):
            if network is not None:
                state |= {(name, key): tensor for key, tensor in network.state_dict().items()}
        for number, values in enumerate(self.optimizer.state.values()):
            state |= {(number, key): value for key, value in values.items() if isinstance(value, torch.Tensor)}
        return state


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    loss_of: Compare,
    precision: str,
    clip: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train on one batch: forward, loss, backward, update. Returns the loss () and the outputs (B,...), both detached.

    inputs: (B,C,H,W) float. targets: (B,...). precision: "fp32" or "bf16". clip: largest norm of the gradient; 0: no
    limit.
    """
    # No cache of bf16 weights: it must not outlive the capture of a step, and each weight is used only once anyway.
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        outputs = model(inputs.contiguous(memory_format=torch.channels_last)).float()  # (B,...)
    loss = loss_of(outputs, targets)  # ()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach(), outputs.detach()


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, weight: torch.Tensor) -> None:
    """Move weights and norm statistics of ema_model toward those of model: ema + weight * (model - ema).

    weight: (), from 0 to 1.
    """
    current, means = (
        [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        for network in (model, ema_model)
    )
    if weight.device.type == "cpu":
        torch._foreach_lerp_(means, current, [weight.float()] * len(means))
    else:
        lerp_together(means, current, weight)


def lerp_together(means: list[torch.Tensor], current: list[torch.Tensor], weight: torch.Tensor) -> None:
    """Interpolate many tensors in place with few kernels: means + weight * (current - means).

    torch._foreach_lerp_ does the same, but with a weight () on a GPU it launches one kernel per tensor.
    """
    change = torch._foreach_sub(current, means)
    torch._foreach_mul_(change, weight)
    torch._foreach_add_(means, change)


def sides(n: int, seed: int, epoch: int) -> torch.Tensor:
    """Choose which of n images to mirror in this epoch, (n,) bool: each image either in even epochs or in odd ones."""
    coins = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5  # (n,)
    return coins ^ bool(epoch % 2)
