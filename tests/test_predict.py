"""Logits in memory and on disk."""

import numpy as np
import pytest
import torch
from helpers import tiny_faces

from fer_utils import predict
from fer_utils.augment import to_float
from fer_utils.data import DataError
from fer_utils.models import build_model
from fer_utils.predict import Predictions, load_predictions, predict_logits


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


def test_missing_logits_say_which_notebook_makes_them(tmp_path):
    with pytest.raises(DataError, match=r"04_model\.npz is not in .*run the notebook"):
        load_predictions(tmp_path / "04_model.npz", tiny_faces())
