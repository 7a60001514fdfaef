"""One training step as a function of tensors on the device, which never waits for the device.

A GPU computes much faster than Python can tell it what to do: what counts is that nothing has to be told, or asked,
between two steps. So all that differs from step to step (which images, which learning rate) lies in tables on the
device, made once an epoch, and losses are added up there. Such a step can be captured once and replayed (streams.py).
"""

from collections.abc import Sequence

import torch
from torch import nn

from fer_utils.augment import to_float
from fer_utils.training.config import TrainConfig
from fer_utils.training.optim import ema_weight, learning_rate
from fer_utils.training.tasks import Compare, Task


class TrainingStep:
    """Augment, forward, loss, backward, clip, update, moving average: one call is one step on one batch.

    Call begin_epoch, then the step itself `steps` times; `losses` (steps,) and `metric_sum` () tell how it went.
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
        """All on one device; the optimizer's learning rates become tensors that the step sets.

        images: (N,48,48) or (N,3,H,W) uint8; targets: (N,...). precision: "fp32" or "bf16". generator: draws the order
        of the images and the augmentation.
        """
        self.model, self.ema_model, self.optimizer = model, ema_model, optimizer
        self.task, self.config, self.precision = task, config, precision
        self.images, self.targets, self.generator = images, targets, generator
        self.batch_size = min(config.batch_size, len(images))
        self.steps = len(images) // self.batch_size
        device, groups = images.device, optimizer.param_groups
        # On a GPU fused optimizers read float32. On a CPU float64 is as exact as Python's own numbers.
        real = torch.float64 if device.type == "cpu" else torch.float32
        # The tables: a row for every step of the epoch.
        self.batches = torch.zeros(self.steps, self.batch_size, dtype=torch.long, device=device)
        self.schedule = torch.zeros(self.steps, len(groups) + 1, dtype=real, device=device)
        self.mirrored = torch.zeros(len(images), dtype=torch.bool, device=device) if config.augment.alternate else None
        # What a step reads and changes.
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.rates = torch.zeros(len(groups) + 1, dtype=real, device=device)  # one per group; last: of the average
        self.losses = torch.zeros(self.steps, device=device)
        self.metric_sum = torch.zeros((), device=device)
        for group, rate in zip(groups, self.rates, strict=False):
            group["lr"] = rate  # a view: the step changes it in place

    def begin_epoch(self, epoch: int, val_losses: Sequence[float] = ()) -> None:
        """Shuffle, and fill the tables for an epoch (0-based). val_losses: of the epochs so far, for "plateau".

        The last, incomplete batch is dropped; each epoch shuffles anew, so every image gets its turn.
        """
        n, device = len(self.images), self.images.device
        order = torch.randperm(n, device=device, generator=self.generator)
        self.batches.copy_(order[: self.steps * self.batch_size].view_as(self.batches))
        rows = [self._rates(epoch, step, val_losses) for step in range(self.steps)]
        self.schedule.copy_(torch.tensor(rows, dtype=torch.float64))
        if self.mirrored is not None:
            self.mirrored.copy_(sides(n, self.config.seed, epoch))
        for counter in (self.position, self.losses, self.metric_sum):
            counter.zero_()

    def _rates(self, epoch: int, step: int, val_losses: Sequence[float]) -> list[float]:
        """A row of the schedule: the learning rate of every group, and how fast the moving average follows."""
        number, total = epoch * self.steps + step, self.config.epochs * self.steps
        lr = learning_rate(number, total, val_losses, self.config)
        return [lr * group["lr_factor"] for group in self.optimizer.param_groups] + [ema_weight(number, self.config)]

    def __call__(self) -> None:
        """Train on the next batch of the epoch. Nothing here may read a tensor's value: that would wait for the GPU."""
        self.rates.copy_(self.schedule.index_select(0, self.position)[0])
        inputs, targets = self.next_batch()
        loss, outputs = train_step(
            self.model, self.optimizer, inputs, targets, self.task.loss, self.precision, self.config.clip
        )
        if self.ema_model is not None:
            update_ema(self.ema_model, self.model, self.rates[-1])
        self.losses.index_copy_(0, self.position, loss.view(1))
        self.metric_sum += self.task.metric_fn(outputs, targets).sum()
        self.position += 1

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The augmented images (B,1,48,48) and the targets (B,...) of the step that comes next."""
        chosen = self.batches.index_select(0, self.position)[0]  # (B,)
        mirror = None if self.mirrored is None else self.mirrored[chosen]
        images, targets = to_float(self.images[chosen]), self.targets[chosen]  # (B,1,48,48), (B,...)
        return self.task.augment(images, targets, self.config.augment, self.generator, mirror)

    def warm_up(self, calls: int = 3) -> None:
        """Make some steps and undo them: afterwards everything that is set up at a first call exists.

        Weights, optimizer, moving average, counters and the generator are then as before, so training is as if this
        had not been. Dropout draws from the default generator, which its owner has to restore.
        """
        before = {key: tensor.clone() for key, tensor in self._state().items()}
        drawn = self.generator.get_state()
        for _ in range(calls):
            self.position.zero_()  # an epoch may have a single step
            self()
        for key, tensor in self._state().items():  # what a first step has created, begins at zero
            tensor.copy_(before[key]) if key in before else tensor.zero_()
        self.generator.set_state(drawn)

    def _state(self) -> dict[tuple, torch.Tensor]:
        """All tensors that a step changes."""
        state = {("counter", name): getattr(self, name) for name in ("position", "losses", "metric_sum")}
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
    """Forward, loss, backward, update on one batch. Returns the loss () and the outputs (N,...), both detached.

    clip: largest norm of the gradient; 0: no limit.
    """
    # A cache of converted weights must not outlive the capture of a step, and each weight is used only once anyway.
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        outputs = model(inputs.contiguous(memory_format=torch.channels_last)).float()
    loss = loss_of(outputs, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach(), outputs.detach()


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, weight: torch.Tensor) -> None:
    """Move the averaged weights and the statistics of norms towards those of the model: by `weight` () of the way."""
    current, means = (
        [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        for network in (model, ema_model)
    )
    if weight.device.type == "cpu":
        torch._foreach_lerp_(means, current, [weight.float()] * len(means))
    else:
        lerp_together(means, current, weight)


def lerp_together(means: list[torch.Tensor], current: list[torch.Tensor], weight: torch.Tensor) -> None:
    """As torch._foreach_lerp_, in place, but in few kernels: with a weight () on a GPU that would be one per tensor."""
    change = torch._foreach_sub(current, means)
    torch._foreach_mul_(change, weight)
    torch._foreach_add_(means, change)


def sides(n: int, seed: int, epoch: int) -> torch.Tensor:
    """(n,) bool: a coin for each image says whether it is mirrored in even epochs or in odd ones."""
    coins = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5
    return coins ^ bool(epoch % 2)
