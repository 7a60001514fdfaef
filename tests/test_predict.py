"""Logits in memory and on disk."""

import os
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_faces
from torch import nn
from torchvision.transforms.functional import ten_crop

from fer_utils import predict
from fer_utils.augment import to_float
from fer_utils.errors import DataError, TrainingError
from fer_utils.models import build_model
from fer_utils.predict import VIEWS, Predictions, load_predictions, predict_logits, predict_outputs


def test_logits_are_the_models_own_in_any_batch_size():
    model, images = build_model("baseline_cnn"), tiny_faces().images[:10]
    with torch.inference_mode():
        expected = model.eval()(to_float(torch.from_numpy(images))).numpy()
    model.train()
    assert np.allclose(predict_logits(model, images, batch_size=3), expected, atol=1e-5)
    assert model.training  # left as it was found


def test_flip_averages_an_image_and_its_mirror_image():
    model, images = build_model("baseline_cnn"), tiny_faces().images[:6]
    mirrored = images[:, :, ::-1].copy()
    average = (predict_logits(model, images) + predict_logits(model, mirrored)) / 2
    assert np.allclose(predict_logits(model, images, views="flip"), average, atol=1e-5)
    assert not np.allclose(predict_logits(model, images), average, atol=1e-5)


# ---- Views at test time ----

FACES = tiny_faces().images[:6]
PIXELS = to_float(torch.from_numpy(FACES)).numpy()[:, 0]  # (6,48,48), as networks get them


class Look(nn.Module):
    """Answers with the image it is shown, (N,48,48): the mean of its answers is the mean of the views."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0]


def moved(images: np.ndarray, right: int, down: int) -> np.ndarray:
    """Images (N,48,48) moved by whole pixels; what comes in repeats the border."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)), mode="edge")
    return padded[:, 2 - down : 50 - down, 2 - right : 50 - right]


def crops(images: np.ndarray) -> list[np.ndarray]:
    """The ten crops of 42 pixels, as torchvision cuts them, enlarged to 48."""
    return [
        F.interpolate(crop[:, None], 48, mode="bilinear", align_corners=False)[:, 0].numpy()
        for crop in ten_crop(torch.from_numpy(images), 42)
    ]


PLACES = [(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)]
MIRRORED = PIXELS[:, :, ::-1].copy()
SHOWN = {
    "none": [PIXELS],
    "flip": [PIXELS, MIRRORED],
    "shifts": [moved(images, *place) for images in (PIXELS, MIRRORED) for place in PLACES],
    "ten_crop": crops(PIXELS),
}


def farthest(a: np.ndarray, b: np.ndarray, border: int) -> float:
    """Largest difference between two stacks of images away from their borders."""
    inside = slice(border, 48 - border)
    return float(np.abs(a - b)[..., inside, inside].max())


def border_of(views: str) -> int:
    """Enlarged crops differ at their border: torchvision repeats it, we look at what lies beyond in the image."""
    return 1 if views == "ten_crop" else 0


@pytest.mark.parametrize("views", SHOWN)
def test_each_view_is_what_its_name_says(views):
    ours = [predict_outputs(Look(), FACES, view=view) for view in VIEWS[views]]
    assert len(ours) == len(SHOWN[views])
    for theirs in SHOWN[views]:  # in any order, and each once
        distances = [farthest(theirs, image, border_of(views)) for image in ours]
        assert sorted(np.array(distances) < 1e-4) == [False] * (len(ours) - 1) + [True]


@pytest.mark.parametrize("views", SHOWN)
def test_logits_are_the_mean_over_the_views(views):
    mean = predict_logits(Look(), FACES, views=views, batch_size=4)
    assert mean.shape == (6, 48, 48) and mean.dtype == np.float32
    assert farthest(mean, np.mean(SHOWN[views], 0), border_of(views)) < 1e-4


def test_shifted_images_are_slices_away_from_the_border():
    right = predict_outputs(Look(), FACES, view=(False, 2, 0, 1))
    down = predict_outputs(Look(), FACES, view=(True, 0, 2, 1))
    assert np.allclose(right[:, :, 2:], PIXELS[:, :, :-2], atol=1e-4)
    assert np.allclose(down[:, 2:], PIXELS[:, :-2, ::-1], atol=1e-4)


def test_logits_are_averaged_not_images():
    squares = nn.Sequential(Look(), nn.Flatten(), Square())
    expected = np.mean([images.reshape(6, -1) ** 2 for images in SHOWN["shifts"]], 0)
    assert np.allclose(predict_logits(squares, FACES, views="shifts"), expected, atol=1e-3)


class Square(nn.Module):
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.square()


def test_unknown_views_list_the_known_ones():
    with pytest.raises(ValueError, match="no views 'tta'; choose one of none, flip, shifts, ten_crop"):
        predict_logits(Look(), FACES, views="tta")


# ---- On disk ----


def published(tmp_path, faces):
    rng = np.random.default_rng(0)
    values = Predictions(rng.normal(size=(2, 28, 7)), rng.normal(size=(2, 28, 7)), (0, 1), faces.fingerprint)
    values.save(tmp_path / "04_model.npz")
    return values


def test_published_logits_come_back(tmp_path):
    faces = tiny_faces()
    values = published(tmp_path, faces)
    back = load_predictions(tmp_path / "04_model.npz", faces)
    assert back.seeds == (0, 1) and back.test.dtype == np.float32
    assert np.allclose(back.test, values.test, atol=2e-3) and np.allclose(back.val, values.val, atol=2e-3)


def test_logits_of_other_data_or_class_order_are_refused_by_name(tmp_path, monkeypatch):
    published(tmp_path, tiny_faces())
    with pytest.raises(DataError, match=r"04_model\.npz was made on other data"):
        load_predictions(tmp_path / "04_model.npz", tiny_faces(seed=1))
    monkeypatch.setattr(predict, "EMOTIONS", tuple(reversed(predict.EMOTIONS)))
    with pytest.raises(DataError, match="class order"):
        load_predictions(tmp_path / "04_model.npz", tiny_faces())


def damaged(kind: str, whole: bytes, path) -> None:
    """Write logits with one kind of damage."""
    if kind == "array":
        np.save(path.open("wb"), np.zeros(3))
    elif kind == "lying header":
        path.write_bytes(whole.replace(b"(2, 28, 7)", b"(9, 28, 7)"))
    elif kind == "flipped":
        path.write_bytes(whole[:900] + bytes([whole[900] ^ 255]) + whole[901:])
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"<html>"}[kind])


@pytest.mark.parametrize("kind", ["array", "lying header", "flipped", "cut", "empty", "text"])
def test_damaged_logits_are_refused_by_name(tmp_path, kind):
    published(tmp_path, tiny_faces())
    path = tmp_path / "04_model.npz"
    with np.load(path) as arrays:
        np.savez(path, **arrays)  # not compressed, so that the damage is where it is meant to be
    damaged(kind, path.read_bytes(), path)
    with pytest.raises(DataError, match=r"^04_model\.npz is damaged or holds no predictions \(.*; run the notebook"):
        load_predictions(path, tiny_faces())


@pytest.mark.timeout(20)
def test_logits_that_unpack_to_gigabytes_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "04_model.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("val.npy", bytes(200_000_000))
    with pytest.raises(DataError, match=r"04_model\.npz is damaged or holds no predictions \(it unpacks to more than"):
        load_predictions(tmp_path / "04_model.npz", tiny_faces())


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_logits_is_refused(tmp_path):
    os.mkfifo(tmp_path / "04_model.npz")
    with pytest.raises(DataError, match=r"04_model\.npz is a pipe"):
        load_predictions(tmp_path / "04_model.npz", tiny_faces())


def rewrite(path, **changes) -> None:
    with np.load(path) as arrays:
        np.savez(path, **(dict(arrays) | changes))


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"seeds": [0, 0]}, "seed 0 twice"),
        ({"seeds": [0, 1, 2]}, r"val logits of shape \(2, 28, 7\)"),
        ({"val": np.full((2, 28, 7), np.inf)}, "val logits that are not finite"),
        ({"test": np.full((2, 28, 7), np.nan)}, "test logits that are not finite"),
        ({"test": np.zeros((2, 27, 7))}, r"test logits of shape \(2, 27, 7\)"),
        ({"seeds": np.array([0.5, 1])}, "is damaged or holds no predictions"),
        ({"spec": np.array("[" * 100_000)}, "is damaged or holds no predictions"),
        ({"spec": np.array("7")}, "is damaged or holds no predictions"),
        ({"views": np.array("sideways")}, "is damaged or holds no predictions"),
        ({"classes": np.array(3)}, "is damaged or holds no predictions"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_logits_that_do_not_fit_are_refused_by_name(tmp_path, changes, problem):
    published(tmp_path, tiny_faces())
    rewrite(tmp_path / "04_model.npz", **changes)
    with pytest.raises(DataError, match=rf"^04_model\.npz.*{problem}"):
        load_predictions(tmp_path / "04_model.npz", tiny_faces())


@pytest.mark.parametrize(
    "seeds, value, problem", [((3, 3), 0, "seed 3 twice"), ((0, 1), np.nan, "test logits that are not finite")]
)
def test_predictions_with_a_seed_twice_or_without_numbers_cannot_be_made(seeds, value, problem):
    with pytest.raises(DataError, match=problem):
        Predictions(np.zeros((2, 3, 7)), np.full((2, 3, 7), value), seeds, "")


def test_outputs_that_are_not_finite_are_an_error():
    model = build_model("baseline_cnn")
    with torch.no_grad():
        model.classifier[-1].bias[3] = float("nan")
    with pytest.raises(TrainingError, match="outputs that are not finite for 5 of 5 images"):
        predict_logits(model, np.zeros((5, 48, 48), np.uint8))


def test_missing_logits_say_which_notebook_makes_them(tmp_path):
    with pytest.raises(DataError, match=r"04_model\.npz is not in .*run the notebook"):
        load_predictions(tmp_path / "04_model.npz", tiny_faces())
