"""What a network can be trained for: the loss it minimizes, and the measure by which its best epoch is chosen."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from fer_utils.augment import Augment, augment_batch, augment_with_points

PIXELS = 48  # width of an image: losses and errors of landmarks are given in its pixels

Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (outputs, targets) -> a number, or one per image


@dataclass(frozen=True)
class Task:
    """One thing to learn. Outputs are what the network returns, targets what it should have returned, both (N,...).

    name: tells checkpoints apart. loss: mean over a batch, (). measure: what `measured` gives, the name in the columns
    train_<measure> and val_<measure> of a history; measured: its value for each image, (N,). higher_is_better: which
    end of the measure is the good one. shown: how the progress line writes it. augment: changes a batch of images and
    its targets together.
    """

    name: str
    loss: Compare
    measure: str
    measured: Compare
    higher_is_better: bool
    shown: str
    augment: Callable[[torch.Tensor, torch.Tensor, Augment, torch.Generator], tuple[torch.Tensor, torch.Tensor]]

    def best(self, values: Sequence[float]) -> int:
        """Position of the best of several values of the measure; the first of equal ones."""
        return int(np.argmax(values) if self.higher_is_better else np.argmin(values))


def classification(label_smoothing: float = 0.0) -> Task:
    """From logits (N,7) to labels (N,): cross-entropy with label smoothing, measured by accuracy."""
    return Task(
        name="classification",
        loss=partial(F.cross_entropy, label_smoothing=label_smoothing),
        measure="accuracy",
        measured=lambda logits, labels: (logits.argmax(1) == labels).float(),
        higher_is_better=True,
        shown="{:.2%}",
        augment=lambda images, labels, how, generator: (augment_batch(images, how, generator), labels),
    )


def landmarks(loss: str) -> Task:
    """From points (N,4,2) to points (N,4,2), both in [0,1]: measured by the mean distance of the four, in pixels.

    loss: "smooth_l1" or "wing".
    """
    if loss not in LANDMARK_LOSSES:
        raise ValueError(f"there is no landmark loss {loss!r}; choose one of {', '.join(LANDMARK_LOSSES)}")
    return Task(
        name=f"landmarks, {loss}",
        loss=LANDMARK_LOSSES[loss],
        measure="error",
        measured=lambda points, labelled: (PIXELS * (points - labelled)).norm(dim=2).mean(1),
        higher_is_better=False,
        shown="{:.3f} px",
        augment=augment_with_points,
    )


def smooth_l1_loss(points: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Quadratic below one pixel, linear above (Girshick 2015, arXiv:1504.08083); mean over all coordinates."""
    return F.smooth_l1_loss(PIXELS * points, PIXELS * labelled)


def wing_loss(points: torch.Tensor, labelled: torch.Tensor, width: float = 2.0, bend: float = 0.5) -> torch.Tensor:
    """Logarithmic below `width` pixels, linear above (Feng et al. 2018, arXiv:1711.06753); mean over all coordinates.

    Small errors weigh more than in smooth-L1: the slope grows up to width / bend as an error shrinks to zero.
    """
    distance = PIXELS * (points - labelled).abs()
    gap = width - width * math.log1p(width / bend)  # where the two parts meet
    return torch.where(distance < width, width * torch.log1p(distance / bend), distance - gap).mean()


LANDMARK_LOSSES = {"smooth_l1": smooth_l1_loss, "wing": wing_loss}
