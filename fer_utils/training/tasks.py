"""What a network can be trained for: the loss it minimizes, and the metric by which its best epoch is chosen."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from fer_utils.augment import Augment, augment_batch, augment_with_points, mix
from fer_utils.data.constants import EMOTIONS

PIXELS = 48  # width of an image: losses and errors of landmarks are given in its pixels

Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (outputs, targets) -> a number, or one per image


@dataclass(frozen=True)
class Task:
    """One thing to learn. Outputs are what the network returns, targets what it should have returned, both (N,...)."""

    name: str  # tells checkpoints apart
    loss: Compare  # mean over a batch, ()
    metric: str  # name of the metric, as in the columns train_<metric> and val_<metric> of a history
    metric_fn: Compare  # value of the metric for each image, (N,)
    higher_is_better: bool  # which end of the metric is the good one
    format: str  # how the progress line writes it
    # Changes a batch of images and its targets together. The last argument says which images to mirror, (N,) bool;
    # None: at random.
    augment: Callable[
        [torch.Tensor, torch.Tensor, Augment, torch.Generator, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]
    ]

    def best(self, values: Sequence[float]) -> int:
        """Position of the best of several values of the metric; the first of equal ones."""
        return int(np.argmax(values) if self.higher_is_better else np.argmin(values))


def classification(
    label_smoothing: float = 0.0, focal_gamma: float = 0.0, class_weights: torch.Tensor | None = None
) -> Task:
    """From logits (N,7) to labels (N,), or shares of the classes (N,7) once images are mixed; measured by accuracy.

    The loss is cross_entropy with these arguments. An image that is mixed counts as right if its larger share is named.
    """
    return Task(
        name="classification",
        loss=lambda logits, labels: cross_entropy(logits, labels, label_smoothing, focal_gamma, class_weights),
        metric="accuracy",
        metric_fn=lambda logits, labels: (
            logits.argmax(1) == (labels if labels.dim() == 1 else labels.argmax(1))
        ).float(),
        higher_is_better=True,
        format="{:.2%}",
        augment=_augment_labeled,
    )


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy (): the negative log-probability of the labeled class, in nats.

    labels: (N,) class numbers or (N,C) shares of the classes. label_smoothing: this share of every label is spread
    evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567). focal_gamma: each class counts (1 - p)^gamma, less
    the better it is known already (Lin et al. 2017, arXiv:1708.02002). class_weights: (C,), the weight of each class;
    the mean is over images, so that with weights of mean 1 the loss keeps its scale.
    """
    if labels.dim() == 1:
        labels = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    labels = labels * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    log_probs = F.log_softmax(logits, 1)
    losses = -labels * log_probs
    if focal_gamma:
        # Where p rounds to 1, the slope of (1 - p)^gamma would be infinite for a gamma below 1.
        losses = losses * (1 - log_probs.exp()).clamp(min=1e-8) ** focal_gamma
    if class_weights is not None:
        losses = losses * class_weights.to(logits.device)
    return losses.sum(1).mean()


def balanced_weights(labels: np.ndarray, num_classes: int = len(EMOTIONS)) -> torch.Tensor:
    """(C,) float weights: N / (C x images of the class), so that all classes weigh the same."""
    counts = np.bincount(labels, minlength=num_classes)
    return torch.tensor(len(labels) / (num_classes * np.maximum(counts, 1)), dtype=torch.float32)


def _augment_labeled(images, labels, how, generator, mirror=None):
    images = augment_batch(images, how, generator, mirror)
    if how.mixes:
        images, labels = mix(images, F.one_hot(labels, len(EMOTIONS)).float(), how, generator)
    return images, labels


def rotations() -> Task:
    """From logits (N,4) to the quarter turns (N,) by which an image was turned: it needs no label of a person.

    Gidaris et al. 2018 (arXiv:1803.07728): whoever tells which way up something is, knows what it looks like. In
    training every image is turned at random, whatever target it came with; images of val are turned beforehand.
    """
    return replace(classification(), name="rotations", augment=_augment_turned)


def turn(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Square images (N,...,S,S), each turned anticlockwise by its number (N,) of quarter turns, 0 to 3."""
    all_turned = torch.stack([images.rot90(k, (-2, -1)) for k in range(4)])
    return all_turned[turns, torch.arange(len(images), device=images.device)]


def _augment_turned(images, _, how, generator, mirror=None):
    if how.mixes:
        raise ValueError("turned images cannot be mixed; switch off Augment.mixup and Augment.cutmix")
    turns = torch.randint(4, (len(images),), generator=generator, device=images.device)
    return turn(augment_batch(images, how, generator, mirror), turns), turns


def landmarks(loss: str) -> Task:
    """From points (N,4,2) to points (N,4,2), both in [0,1]: measured by the mean distance of the four, in pixels.

    loss: "smooth_l1" or "wing".
    """
    if loss not in LANDMARK_LOSSES:
        raise ValueError(f"there is no landmark loss {loss!r}; choose one of {', '.join(LANDMARK_LOSSES)}")
    return Task(
        name=f"landmarks, {loss}",
        loss=LANDMARK_LOSSES[loss],
        metric="error",
        metric_fn=lambda points, labeled: (PIXELS * (points - labeled)).norm(dim=2).mean(1),
        higher_is_better=False,
        format="{:.3f} px",
        augment=augment_with_points,
    )


def smooth_l1_loss(points: torch.Tensor, labeled: torch.Tensor) -> torch.Tensor:
    """Quadratic below one pixel, linear above (Girshick 2015, arXiv:1504.08083); mean over all coordinates."""
    return F.smooth_l1_loss(PIXELS * points, PIXELS * labeled)


def wing_loss(points: torch.Tensor, labeled: torch.Tensor, width: float = 2.0, bend: float = 0.5) -> torch.Tensor:
    """Logarithmic below `width` pixels, linear above (Feng et al. 2018, arXiv:1711.06753); mean over all coordinates.

    Small errors weigh more than in smooth-L1: the slope grows up to width / bend as an error shrinks to zero.
    """
    distance = PIXELS * (points - labeled).abs()
    gap = width - width * math.log1p(width / bend)  # where the two parts meet
    return torch.where(distance < width, width * torch.log1p(distance / bend), distance - gap).mean()


LANDMARK_LOSSES = {"smooth_l1": smooth_l1_loss, "wing": wing_loss}
