"""Training tasks: the loss that a network minimizes, and the metric that chooses its best epoch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from fer_utils.augment import Augment, augment_batch, augment_with_points, mix
from fer_utils.data.constants import EMOTIONS

PIXELS = 48  # width of an image: landmark losses and errors are measured in its pixels

Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (outputs, targets) -> (), or (N,) one per image


@dataclass(frozen=True)
class Task:
    """A training task. Outputs of the network and targets both have the shape (N,...)."""

    name: str  # identifies the task in checkpoints
    loss: Compare  # mean over a batch, ()
    metric: str  # name of the metric, as in the columns train_<metric> and val_<metric> of a history
    metric_fn: Compare  # metric of each image, (N,)
    higher_is_better: bool  # whether the best epoch has the highest or the lowest metric
    format: str  # format of the metric in a progress line
    # Augments a batch of images together with its targets; the last argument says which images to mirror, (N,) bool;
    # None: at random.
    augment: Callable[
        [torch.Tensor, torch.Tensor, Augment, torch.Generator, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]
    ]

    def best(self, values: Sequence[float]) -> int:
        """Return the position of the best value of the metric; the first of equal ones."""
        return int(np.argmax(values) if self.higher_is_better else np.argmin(values))


def classification(
    label_smoothing: float = 0.0, focal_gamma: float = 0.0, class_weights: torch.Tensor | None = None
) -> Task:
    """Make the task of classifying images; its metric is accuracy, its loss is cross_entropy with these arguments.

    Outputs are logits (N,7). Targets are labels (N,), or shares of the classes (N,7) after mixing. For a mixed image,
    the class with the larger share is the correct prediction.
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
    """Compute the mean cross-entropy (): the negative log-probability of the labels, in nats.

    logits: (N,C). labels: (N,) class numbers, or (N,C) shares of the classes.
    label_smoothing: share of every label that is spread evenly over all classes (Szegedy et al. 2016,
    arXiv:1512.00567).
    focal_gamma: multiplies the loss of a class by (1 - p)^gamma, which lowers the weight of easy images (Lin et al.
    2017, arXiv:1708.02002).
    class_weights: (C,), factor on the loss of each class. The mean is taken over images, so weights with a mean of 1
    keep the scale of the loss.
    """
    if labels.dim() == 1:
        labels = F.one_hot(labels, logits.shape[1]).to(logits.dtype)  # (N,C)
    labels = labels * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    log_probs = F.log_softmax(logits, 1)  # (N,C)
    losses = -labels * log_probs  # (N,C)
    if focal_gamma:
        # At p = 1 the slope of (1 - p)^gamma would be infinite for a gamma below 1.
        losses = losses * (1 - log_probs.exp()).clamp(min=1e-8) ** focal_gamma
    if class_weights is not None:
        losses = losses * class_weights.to(logits.device)
    return losses.sum(1).mean()


def balanced_weights(labels: np.ndarray, num_classes: int = len(EMOTIONS)) -> torch.Tensor:
    """Return class weights (C,) float32 that give all classes the same influence: N / (C * images of the class)."""
    counts = np.bincount(labels, minlength=num_classes)
    return torch.tensor(len(labels) / (num_classes * np.maximum(counts, 1)), dtype=torch.float32)


def _augment_labeled(
    images: torch.Tensor,
    labels: torch.Tensor,
    how: Augment,
    generator: torch.Generator,
    mirror: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment images and, if they are mixed, turn labels (N,) into shares of the classes (N,7)."""
    images = augment_batch(images, how, generator, mirror)
    if how.mixes:
        images, labels = mix(images, F.one_hot(labels, len(EMOTIONS)).float(), how, generator)
    return images, labels


def rotations() -> Task:
    """Make the task of predicting rotations, a pretext task that needs no labels (Gidaris et al. 2018).

    Outputs are logits (N,4), targets the quarter turns (N,), 0 to 3. A network must recognize objects to tell which way
    up they are (arXiv:1803.07728). Training turns every image at random and ignores its target. Images of val must be
    turned beforehand.
    """
    return replace(classification(), name="rotations", augment=_augment_turned)


def turn(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn square images (N,...,S,S) counterclockwise, each by its number (N,) of quarter turns, 0 to 3."""
    all_turned = torch.stack([images.rot90(k, (-2, -1)) for k in range(4)])  # (4,N,...,S,S)
    return all_turned[turns, torch.arange(len(images), device=images.device)]  # (N,...,S,S)


def _augment_turned(
    images: torch.Tensor, _: torch.Tensor, how: Augment, generator: torch.Generator, mirror: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment images and turn each at random; the targets are the numbers of quarter turns (N,)."""
    if how.mixes:
        raise ValueError("turned images cannot be mixed; switch off Augment.mixup and Augment.cutmix")
    turns = torch.randint(4, (len(images),), generator=generator, device=images.device)
    return turn(augment_batch(images, how, generator, mirror), turns), turns


def landmarks(loss: str) -> Task:
    """Make the task of predicting landmarks; its metric is the mean distance of the four points, in pixels.

    Outputs and targets are points (N,4,2) in [0,1]. loss: "smooth_l1" or "wing"; ValueError for any other.
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
    """Compute the smooth L1 loss (Girshick 2015, arXiv:1504.08083): quadratic below one pixel, linear above.

    points, labeled: (N,4,2) in [0,1]. Returns the mean over all coordinates, ().
    """
    return F.smooth_l1_loss(PIXELS * points, PIXELS * labeled)


def wing_loss(points: torch.Tensor, labeled: torch.Tensor, width: float = 2.0, bend: float = 0.5) -> torch.Tensor:
    """Compute the wing loss (Feng et al. 2018, arXiv:1711.06753): logarithmic below `width` pixels, linear above.

    Small errors have more weight than in smooth L1: the slope grows to width / bend as the error approaches zero.
    points, labeled: (N,4,2) in [0,1]. Returns the mean over all coordinates, ().
    """
    distance = PIXELS * (points - labeled).abs()
    gap = width - width * math.log1p(width / bend)  # where the two parts meet
    return torch.where(distance < width, width * torch.log1p(distance / bend), distance - gap).mean()


LANDMARK_LOSSES = {"smooth_l1": smooth_l1_loss, "wing": wing_loss}


def emotions_and_landmarks(weight: float, label_smoothing: float = 0.0) -> Task:
    """Make the task of learning emotions and landmarks together (multi-task learning: Caruana 1997).

    Outputs (N,15) are seven logits and four points, as those of MultiTaskNet. Targets (N,9) come from
    `labels_and_points`. The loss is cross_entropy plus `weight` times the smooth L1 loss of the faces that have
    landmarks. The metric is the accuracy of the emotions.
    """

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        (logits, points), (labels, labeled) = split_outputs(outputs), _split_targets(targets)
        return cross_entropy(logits, labels, label_smoothing) + weight * _labeled_points_loss(points, labeled)

    return replace(
        classification(),
        name=f"emotions and landmarks, weight {weight:g}",
        loss=loss,
        metric_fn=lambda outputs, targets: (split_outputs(outputs)[0].argmax(1) == targets[:, 0]).float(),
        augment=_augment_labels_and_points,
    )


def labels_and_points(labels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Join labels (N,) and landmarks (N,4,2), nan for a face without, to targets (N,9) of emotions_and_landmarks."""
    return np.column_stack([labels, points.reshape(len(points), -1)]).astype(np.float32)


def split_outputs(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the outputs (N,15) of MultiTaskNet into logits (N,7) and points (N,4,2)."""
    return outputs[:, : len(EMOTIONS)], outputs[:, len(EMOTIONS) :].unflatten(1, (-1, 2))


def _split_targets(targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split targets (N,9) into labels (N,) and points (N,4,2)."""
    return targets[:, 0].long(), targets[:, 1:].unflatten(1, (-1, 2))


def _labeled_points_loss(points: torch.Tensor, labeled: torch.Tensor) -> torch.Tensor:
    """Compute smooth_l1_loss over the points that are not nan in labeled (N,4,2); 0 if all are."""
    has_label = labeled.isfinite()
    # A nan would reach the gradient even where it is multiplied by 0, so the prediction itself takes its place.
    gaps = PIXELS * (points - torch.where(has_label, labeled, points.detach()))  # (N,4,2)
    return F.smooth_l1_loss(gaps, torch.zeros_like(gaps), reduction="sum") / has_label.sum().clamp(min=1)


def _augment_labels_and_points(
    images: torch.Tensor,
    targets: torch.Tensor,
    how: Augment,
    generator: torch.Generator,
    mirror: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment images, and move the landmarks in their targets (N,9) along with the pixels."""
    images, points = augment_with_points(images, _split_targets(targets)[1], how, generator, mirror)
    return images, torch.cat([targets[:, :1], points.flatten(1)], 1)
