"""predict_faces: what it takes and returns; and the search of photos for small, lying and upside-down faces."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import fer_utils
from fer_utils import faces, paths
from fer_utils.classifiers import FILES
from fer_utils.data import EMOTIONS
from fer_utils.errors import DataError, TrainingError
from fer_utils.models import build_model
from fer_utils.models.weights import save_weights
from fer_utils.vision import detector
from fer_utils.vision.photos import crop_faces, find_in_photo, quarter_turns

BOX = 194.5  # width of the detector's box in the portrait, in pixels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "model.pt"
    save_weights(build_model("baseline_cnn"), path)
    return path


@pytest.fixture
def no_detector(monkeypatch):
    monkeypatch.setattr(faces, "_start_finder_once", lambda: (detector.whole_image, "Faces cannot be found."))


def group(portrait, face):
    """A picture of 1600x1200 pixels with 15 portraits whose boxes are `face` pixels wide, and their centers (15,2)."""
    side, rng = round(350 * face / BOX), np.random.default_rng(0)
    head = cv2.resize(portrait[58:408, 89:439], (side, side), interpolation=cv2.INTER_AREA)
    picture, corners = np.full((1200, 1600, 3), 128, np.uint8), []
    for cell in range(15):
        left, top = 320 * (cell % 5) + rng.integers(320 - side), 400 * (cell // 5) + rng.integers(400 - side)
        picture[top : top + side, left : left + side] = head
        corners.append((left, top))
    return picture, np.array(corners) + side / 2


def centers(found):
    return np.array([(left + width / 2, top + height / 2) for left, top, width, height in (f.box for f in found)])


# --- Search -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40, 100])
def test_every_face_of_a_group_is_found_once(portrait, finder, size):
    picture, expected = group(portrait, size)
    found = find_in_photo(picture, finder)
    distances = np.linalg.norm(expected[:, None] - centers(found), axis=2)  # (15,n)
    assert len(found) == 15 and (distances.min(1) < size / 2).all()
    assert np.median([face.box[2] for face in found]) == pytest.approx(size, rel=0.15)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_face_is_found_where_it_is_and_its_crop_is_upright(portrait, finder, turns):
    (upright,), (face,) = finder(portrait), find_in_photo(np.rot90(portrait, turns), finder)
    there = np.zeros(portrait.shape[:2])
    x, y = centers([upright])[0].astype(int)
    there[y, x] = 1
    assert np.abs(centers([face])[0] - np.argwhere(np.rot90(there, turns))[0][::-1]).max() < 20
    assert quarter_turns(face) % 4 == turns
    crops = [crop_faces(*pair)[0].ravel() for pair in ((portrait, [upright]), (np.rot90(portrait, turns), [face]))]
    assert np.corrcoef(crops)[0, 1] > 0.8


def test_nothing_is_found_in_noise_and_in_an_even_picture(finder):
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3)).astype(np.uint8)
    assert find_in_photo(noise, finder) == [] and find_in_photo(np.full_like(noise, 90), finder) == []


def test_boxes_of_a_large_photo_are_in_its_own_pixels(portrait, finder):
    (small,), (large,) = finder(portrait), find_in_photo(cv2.resize(portrait, None, fx=5, fy=5), finder)
    assert np.allclose(large.box, 5 * np.array(small.box), atol=0.1 * 5 * small.box[2])
    assert large.points.max() > 1000


def test_frames_are_searched_once_and_photos_in_tiles_that_cover_them():
    seen = []

    def note(image, ranges=detector.RANGES, confidence=0.5):
        seen.append((image.shape, tuple(ranges)))
        return []

    frame = np.zeros((720, 1280, 3), np.uint8)
    for source in ("webcam", "video"):
        faces.SEARCH[source](frame, note)
    assert seen == [(frame.shape, ("short",)), (frame.shape, detector.RANGES)]
    faces.SEARCH["photo"](frame, note)
    assert len(seen) > 20


def test_without_a_detector_a_photo_is_one_face():
    (face,) = find_in_photo(np.zeros((900, 1200, 3), np.uint8), detector.whole_image)
    assert face.square == (150, 0, 900)


# --- Predict ----------------------------------------------------------------------------------------------------------


def test_paths_folders_and_arrays_give_one_result_each(no_detector, checkpoint, tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (60, 80)).astype(np.uint8)
    (tmp_path / "album").mkdir()
    for name in ("b.png", "a.PNG", "notes.txt", ".hidden.png"):
        Image.fromarray(gray).save(tmp_path / "album" / name, "PNG")
    single, color = tmp_path / "album" / "b.png", np.repeat(gray[..., None], 3, axis=2)
    with pytest.warns(UserWarning, match=r"Faces cannot be found."):
        results = fer_utils.predict_faces(
            [single, str(tmp_path / "album"), gray, color], checkpoint, "cpu", batch_size=2
        )
    names = [str(tmp_path / "album" / name) for name in ("b.png", "a.PNG", "b.png")] + ["array 3", "array 4"]
    assert [result.picture for result in results] == names
    rows = [list(face.probabilities.values()) for result in results for face in result.faces]
    assert len(rows) == 5 and np.allclose(rows, rows[0], atol=1e-5) and sum(rows[0]) == pytest.approx(1)
    table = results.to_frame()
    columns = ["picture", "face", "x", "y", "width", "height", "detector_confidence", "label", *EMOTIONS]
    assert list(table) == columns and list(table.picture) == names and list(table.face) == [1] * 5
    assert (
        tuple(table.loc[0, ["x", "y", "width", "height"]]) == (10, 0, 60, 60) and table.detector_confidence.isna().all()
    )
    assert table.label[0] == table.loc[0, list(EMOTIONS)].astype(float).idxmax() == results[0].faces[0].label


def test_a_bad_picture_does_not_lose_the_others(no_detector, checkpoint, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with pytest.warns(UserWarning) as warned:
        first, second, third = fer_utils.predict_faces([bad, np.zeros((9, 9), np.uint8), np.zeros((9, 9))], checkpoint)
    assert [str(warning.message) for warning in warned] == ["Faces cannot be found.", first.error, third.error]
    assert "float64 array of shape (9, 9)" in third.error
    assert "bad.jpg is not an image" in first.error and not first.faces and len(second.faces) == 1


@pytest.mark.filterwarnings("ignore:Faces cannot be found")
@pytest.mark.parametrize(
    "pictures, message", [("absent.jpg", "absent.jpg cannot be read"), ([], "there are no pictures")]
)
def test_without_any_picture_there_is_an_error(no_detector, checkpoint, pictures, message):
    with pytest.raises(DataError, match=message):
        fer_utils.predict_faces(pictures, checkpoint)


@pytest.mark.filterwarnings("ignore:Faces cannot be found")
def test_an_empty_folder_is_said(no_detector, checkpoint, tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        fer_utils.predict_faces(tmp_path, checkpoint)


def test_pictures_without_faces_give_an_empty_table(monkeypatch, checkpoint):
    monkeypatch.setattr(faces, "_start_finder_once", lambda: (lambda image, ranges=(): [], ""))
    results = fer_utils.predict_faces(np.zeros((90, 90, 3), np.uint8), checkpoint)
    assert results[0].faces == () and len(results.to_frame()) == 0 and "happy" in results.to_frame()


def test_small_faces_are_counted():
    found = [detector.Face((0, 0, side, side), 0.9, (0, 0, side), np.empty((0, 2))) for side in (47, 48, 30)]
    notice = faces.to_result("party.jpg", found, np.eye(7)[:3]).notice
    assert notice == "party.jpg: 2 faces may be too small; below 48x48 pixels, predictions are unreliable"
    assert faces.to_result("party.jpg", found[1:2], np.eye(7)[:1]).notice == ""


# --- Choose a network -------------------------------------------------------------------------------------------------


def test_the_most_accurate_network_is_used_unless_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(paths, "ASSETS", tmp_path)
    with pytest.raises(TrainingError, match="no trained network yet"):
        faces.find_network(None)
    rows = {"baseline_cnn": ("csv", 0.6), "best_resnet18": ("csv", 0.7), "attention_resnet18": ("sample", 0.99)}
    for name, (data, accuracy) in rows.items():
        model = build_model("baseline_cnn")
        model.origin = {"data": data, "val": accuracy}
        save_weights(model, tmp_path / "outputs" / "checkpoints" / "/".join(FILES[name]))
    assert faces.find_network(None).stem == "best_resnet18"
    assert faces.find_network("attention_resnet18").stem == "attention_resnet18"
    assert faces.find_network("my/model.pt").name == "model.pt"
    with pytest.raises(TrainingError, match="efficientnet_crp is not trained yet; run notebook 06_efficientnet"):
        faces.find_network("efficientnet_crp")


def test_the_package_itself_loads_nothing():
    code = "import sys, fer_utils; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="predict_face'"):
        fer_utils.predict_face  # noqa: B018
