"""Knowledge distillation: a network learns from the predictions of other networks, its teachers."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from fer_utils.augment import Augment, augment_batch
from fer_utils.models.weights import checksum
from fer_utils.training.tasks import Task, classification


def distillation(teachers: Sequence[nn.Module], precision: str = "fp32", out_of_fold: bool = False) -> Task:
    """Make the task of predicting what the teachers predict for the same augmented image (Hinton et al. 2015).

    The teachers see exactly the view that the student sees (Beyer et al. 2022, arXiv:2106.05237). The targets are the
    probabilities of their ensemble: equal weights of their log-probabilities. Labels are not needed. The loss is
    cross-entropy, which differs from the KL divergence only by a constant. During training, accuracy means agreement
    with the teachers; on val it means accuracy as usual.

    precision: of the teachers, "fp32" or "bf16".
    out_of_fold: if True, teacher number f judges only the images of fold f, which it has not been trained on. Targets
    of train are then pairs (N,2) of label and fold instead of labels (N,).
    """
    teachers = [teacher.eval() for teacher in teachers]

    def augment(
        images: torch.Tensor,
        labels: torch.Tensor,
        how: Augment,
        generator: torch.Generator,
        mirror: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment images and replace their targets by the probabilities (N,7) of the teachers."""
        images = augment_batch(images, how, generator, mirror)
        log_probs = teacher_log_probs(teachers, images, precision)  # (T,N,7)
        if out_of_fold:
            rows = torch.arange(len(images), device=images.device)
            return images, log_probs[labels[:, 1], rows].exp()  # (N,7)
        return images, log_probs.mean(0).softmax(1)  # (N,7)

    kind = "out-of-fold distillation" if out_of_fold else "distillation"
    name = f"{kind} from {', '.join(str(checksum(teacher)) for teacher in teachers)}"
    return replace(classification(), name=name, augment=augment)


@torch.no_grad()
def teacher_log_probs(teachers: Sequence[nn.Module], images: torch.Tensor, precision: str) -> torch.Tensor:
    """Compute log-probabilities (T,N,7) of T teachers for images (N,1,48,48), on the device of the images."""
    images = images.contiguous(memory_format=torch.channels_last)
    for teacher in teachers:
        if next(teacher.parameters()).device != images.device:  # the training runs on another machine of a cluster
            teacher.to(images.device)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        logits = torch.stack([teacher(images) for teacher in teachers])  # (T,N,7)
    return logits.float().log_softmax(2)
