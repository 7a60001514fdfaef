"""What classifiers are trained for: the loss against torch's and by hand, class weights, the measure.

Those of the landmark network are tested with it.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from fer_utils.augment import NO_AUGMENT, Augment, augment_batch, augment_with_points
from fer_utils.models import build_model
from fer_utils.training.tasks import (
    balanced_weights,
    classification,
    cross_entropy,
    emotions_and_landmarks,
    labels_and_points,
    smooth_l1_loss,
    split_outputs,
)

torch.manual_seed(0)
LOGITS, LABELS = 2 * torch.randn(40, 7), torch.arange(40) % 7
SHARES = torch.rand(40, 7).softmax(1)


def logits_of(*probabilities: float) -> torch.Tensor:
    """(N,2) logits that give the first of two classes these probabilities."""
    p = torch.tensor(probabilities)
    return torch.stack([p, 1 - p], 1).log()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("labels", [LABELS, SHARES], ids=["labels", "shares"])
def test_cross_entropy_is_torchs(labels, smoothing):
    expected = F.cross_entropy(LOGITS, labels, label_smoothing=smoothing)
    assert torch.allclose(cross_entropy(LOGITS, labels, smoothing), expected)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "focal_gamma": 2.0, "class_weights": SHARES[0]}])
def test_labels_are_shares_of_one_class(options):
    shares = F.one_hot(LABELS, 7).float()
    assert torch.equal(cross_entropy(LOGITS, LABELS, **options), cross_entropy(LOGITS, shares, **options))


def test_class_weights_by_hand():
    logits, labels, weights = logits_of(0.5, 0.2, 0.9), torch.tensor([0, 1, 1]), torch.tensor([3.0, 0.5])
    expected = -(3 * np.log(0.5) + 0.5 * np.log(0.8) + 0.5 * np.log(0.1)) / 3  # over images, not over weights
    assert float(cross_entropy(logits, labels, class_weights=weights)) == pytest.approx(expected)


def test_each_share_of_a_mixed_label_has_the_weight_of_its_class():
    loss = cross_entropy(logits_of(0.2), torch.tensor([[0.7, 0.3]]), class_weights=torch.tensor([2.0, 0.5]))
    assert float(loss) == pytest.approx(-(2 * 0.7 * np.log(0.2) + 0.5 * 0.3 * np.log(0.8)))


def test_weights_of_one_change_nothing():
    expected = cross_entropy(LOGITS, LABELS, 0.1)
    assert torch.allclose(cross_entropy(LOGITS, LABELS, 0.1, class_weights=torch.ones(7)), expected)


def test_focal_loss_by_hand():
    loss = cross_entropy(logits_of(0.9, 0.2), torch.tensor([0, 0]), focal_gamma=2.0)
    assert float(loss) == pytest.approx(-(0.1**2 * np.log(0.9) + 0.8**2 * np.log(0.2)) / 2)


def test_focal_loss_of_a_mixed_label_by_hand():
    loss = cross_entropy(logits_of(0.9), torch.tensor([[0.6, 0.4]]), focal_gamma=2.0)
    assert float(loss) == pytest.approx(-(0.6 * 0.1**2 * np.log(0.9) + 0.4 * 0.9**2 * np.log(0.1)), rel=1e-5)


def test_focal_loss_weighs_what_is_known_already_less():
    known, unknown = logits_of(0.95), logits_of(0.3)
    label, relative = torch.tensor([0]), []
    for gamma in (0.0, 0.5, 2.0, 5.0):
        losses = [float(cross_entropy(logits, label, focal_gamma=gamma)) for logits in (known, unknown)]
        relative.append(losses[0] / losses[1])
    assert relative == sorted(relative, reverse=True) and relative[-1] < 1e-5 < 0.01 < relative[0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_are_finite_where_an_image_is_known_for_certain(gamma):
    logits = torch.tensor([[60.0, 0.0, 0.0], [60.0, 0.0, 0.0]], requires_grad=True)  # its probability rounds to 1
    cross_entropy(logits, torch.tensor([0, 1]), 0.1, gamma).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[1].abs().sum() > 0


def test_balanced_weights_are_scikit_learns_and_1_on_average():
    labels = np.repeat(np.arange(7), [40, 5, 41, 72, 48, 32, 49])
    weights = balanced_weights(labels)
    assert np.allclose(weights, compute_class_weight("balanced", classes=np.arange(7), y=labels))
    assert float(weights[labels].mean()) == pytest.approx(1)
    assert weights.dtype == torch.float32


def test_balanced_weights_make_all_classes_count_the_same():
    labels = np.repeat(np.arange(7), [40, 5, 41, 72, 48, 32, 49])
    totals = np.bincount(labels) * balanced_weights(labels).numpy()
    assert np.allclose(totals, totals[0])


def test_a_class_without_images_gives_no_infinite_weight():
    assert torch.isfinite(balanced_weights(np.zeros(10, int))).all()


def test_options_reach_the_loss_of_the_task():
    weights = SHARES[0]
    expected = cross_entropy(LOGITS, LABELS, 0.2, 1.5, weights)
    assert torch.equal(classification(0.2, 1.5, weights).loss(LOGITS, LABELS), expected)
    for other in (classification(0.0, 1.5, weights), classification(0.2, 0, weights), classification(0.2, 1.5)):
        assert not torch.isclose(other.loss(LOGITS, LABELS), expected)


def test_right_is_who_names_the_label_or_its_larger_share():
    logits, measured = torch.eye(7)[[2, 2, 5]], classification().metric_fn
    assert measured(logits, torch.tensor([2, 3, 5])).tolist() == [1, 0, 1]
    shares = torch.zeros(3, 7)
    shares[0, [2, 4]], shares[1, [2, 4]], shares[2, 5] = torch.tensor([0.6, 0.4]), torch.tensor([0.4, 0.6]), 1.0
    assert measured(logits, shares).tolist() == [1, 0, 1]


def test_labels_stay_numbers_unless_images_are_mixed():
    images, task, generator = torch.randn(8, 1, 48, 48), classification(), torch.Generator().manual_seed(0)
    same, labels = task.augment(images, LABELS[:8], NO_AUGMENT, generator, None)
    assert torch.equal(labels, LABELS[:8]) and torch.equal(same, images)


# ---- Emotions and landmarks together ----

POINTS = torch.rand(40, 4, 2)
HAS_POINTS = torch.arange(40) % 3 > 0  # a third of the faces has no landmarks
TARGETS = torch.from_numpy(labels_and_points(LABELS.numpy(), torch.where(HAS_POINTS[:, None, None], POINTS, np.nan)))


def joint_outputs() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.cat([LOGITS, torch.rand(40, 8)], 1).requires_grad_()


def test_joint_loss_is_the_sum_of_both_and_faces_without_landmarks_count_in_the_first_only():
    outputs = joint_outputs()
    logits, points = split_outputs(outputs)
    expected = cross_entropy(LOGITS, LABELS, 0.1) + 0.3 * smooth_l1_loss(points[HAS_POINTS], POINTS[HAS_POINTS])
    assert torch.equal(logits, LOGITS) and points.shape == (40, 4, 2)
    torch.testing.assert_close(emotions_and_landmarks(0.3, 0.1).loss(outputs, TARGETS), expected)


def test_a_face_without_landmarks_sends_no_gradient_to_their_head():
    outputs = joint_outputs()
    emotions_and_landmarks(0.3).loss(outputs, TARGETS).backward()
    of_logits, of_points = split_outputs(outputs.grad)
    assert (of_points[~HAS_POINTS] == 0).all() and (of_points[HAS_POINTS] != 0).any((1, 2)).all()
    assert torch.isfinite(of_logits).all() and (of_logits != 0).any(1).all()  # every face has a label


def test_a_batch_without_any_landmarks_teaches_emotions_only():
    outputs, targets = joint_outputs(), TARGETS.clone()
    targets[:, 1:] = torch.nan
    loss = emotions_and_landmarks(0.3).loss(outputs, targets)
    loss.backward()
    torch.testing.assert_close(loss, cross_entropy(LOGITS, LABELS))
    assert (split_outputs(outputs.grad)[1] == 0).all()


def test_joint_metric_is_the_accuracy_of_the_emotions():
    outputs = joint_outputs().detach()
    outputs[:, 7:] = 100  # points are no votes
    task = emotions_and_landmarks(0.3)
    assert torch.equal(task.metric_fn(outputs, TARGETS), (LOGITS.argmax(1) == LABELS).float())
    assert task.metric == "accuracy" and task.higher_is_better


def test_landmarks_move_with_the_images_and_labels_stay():
    images, how = torch.rand(40, 1, 48, 48), Augment()
    seen, targets = emotions_and_landmarks(1.0).augment(images, TARGETS, how, torch.Generator().manual_seed(2), None)
    moved = augment_with_points(images, POINTS, how, torch.Generator().manual_seed(2))[1]
    assert torch.equal(targets[:, 0].long(), LABELS)
    torch.testing.assert_close(targets[HAS_POINTS, 1:], moved[HAS_POINTS].flatten(1))
    assert targets[~HAS_POINTS, 1:].isnan().all()
    # The images are those that a network without landmarks is trained on.
    assert torch.equal(seen, augment_batch(images, how, torch.Generator().manual_seed(2)))


def test_tasks_of_other_weights_have_other_names():
    assert emotions_and_landmarks(0.1).name != emotions_and_landmarks(0.2).name  # else a checkpoint would be taken over


def test_the_classifier_of_a_multi_task_network_is_a_resnet18():
    networks = []
    for name in ("resnet18", "multi_task_net"):
        torch.manual_seed(4)
        networks.append(build_model(name).train())
    alone, joint = networks
    weights = joint.classifier.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in alone.state_dict().items())
    images = torch.randn(4, 1, 48, 48)
    batches = []
    for network in networks:
        torch.manual_seed(5)
        batches.append([network(images) for _ in range(2)])  # two: the second head must not draw dropout in between
    for logits, outputs in zip(*batches, strict=True):
        assert outputs.shape == (4, 15) and torch.equal(split_outputs(outputs)[0], logits)
