"""Distillation: targets are the teachers' predictions for the same view, and no label reaches the student."""

import pytest
import torch
from helpers import toy_faces

from fer_utils.augment import NO_AUGMENT, Augment, augment_batch, to_float
from fer_utils.models import build_model
from fer_utils.training import TrainConfig, fit
from fer_utils.training.distill import distillation


@pytest.fixture(scope="module")
def teachers():
    torch.manual_seed(0)
    return [build_model("small_resnet", width=4), build_model("small_resnet", width=4)]


@pytest.fixture
def images():
    return to_float(torch.from_numpy(toy_faces(6, seed=0)[0]))  # (6,1,48,48)


def generator():
    return torch.Generator().manual_seed(0)


def test_targets_are_the_average_of_log_probabilities_for_the_view_of_the_student(teachers, images):
    views, targets = distillation(teachers).augment(images, torch.zeros(6, dtype=torch.long), Augment(), generator())
    assert torch.equal(views, augment_batch(images, Augment(), generator()))
    log_probs = torch.stack([teacher(views).log_softmax(1) for teacher in teachers])
    torch.testing.assert_close(targets, log_probs.mean(0).softmax(1))
    assert not targets.requires_grad


def test_labels_do_not_matter(teachers, images):
    one, other = (
        distillation(teachers).augment(images, torch.full((6,), label), Augment(), generator())[1] for label in (0, 6)
    )
    assert torch.equal(one, other)


def test_out_of_fold_each_image_is_judged_by_the_teacher_of_its_fold(teachers, images):
    folds = torch.tensor([0, 1, 1, 0, 1, 0])
    labels_and_folds = torch.stack([torch.zeros(6, dtype=torch.long), folds], 1)  # (6,2)
    task = distillation(teachers, out_of_fold=True)
    _, targets = task.augment(images, labels_and_folds, NO_AUGMENT, generator())
    by_each = [teacher(images).softmax(1) for teacher in teachers]
    torch.testing.assert_close(targets, torch.stack([by_each[fold][i] for i, fold in enumerate(folds)]))


def test_a_student_learns_what_its_teacher_predicts():
    """The lowest possible loss is the entropy of the teacher's predictions; labels are wrong on purpose."""
    torch.manual_seed(0)
    teacher = build_model("small_resnet", width=4)
    teacher.head[-1].weight.data *= 20  # makes it confident
    images, labels = toy_faces(70, seed=0)
    log_probs = teacher.eval()(to_float(torch.from_numpy(images))).log_softmax(1)
    entropy = -(log_probs.exp() * log_probs).sum(1).mean().item()
    config = TrainConfig(epochs=12, batch_size=14, lr=0.05, label_smoothing=0, precision="fp32", augment=NO_AUGMENT)
    student = build_model("small_resnet", width=4)
    losses = fit(
        student, (images, labels * 0), (images, labels), config, task=distillation([teacher])
    ).history.train_loss
    assert entropy < losses.iloc[-1] < entropy + (losses.iloc[0] - entropy) / 2


def test_other_teachers_are_another_task(teachers):
    """A checkpoint records the name of its task, so a run does not go on with other teachers."""
    assert distillation(teachers).name != distillation(teachers[:1]).name
    assert distillation(teachers).name != distillation(teachers, out_of_fold=True).name


def test_teachers_stay_as_they_were(teachers):
    trainable = [[p.requires_grad for p in teacher.parameters()] for teacher in teachers]
    distillation(teachers)
    assert [[p.requires_grad for p in teacher.parameters()] for teacher in teachers] == trainable and all(trainable[0])
