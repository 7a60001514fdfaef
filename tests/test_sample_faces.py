"""The embedded sample: complete, reproducible, learnable, and made of faces that a face detector finds."""

import time

import cv2
import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from sklearn.linear_model import RidgeClassifier

from fer_utils.data import sample_faces
from fer_utils.data.sample_faces import ARCHETYPES, SampleFaces, make_sample

HAPPY, SAD, SURPRISE, NEUTRAL = 3, 4, 5, 6


@pytest.fixture(scope="module")
def sample() -> SampleFaces:
    return make_sample()


@pytest.fixture(scope="module")
def face_mesh(needs_face_mesh):
    """Finds the mesh points (478,2) of an image in fractions of its width and height; None without a face."""
    from mediapipe import solutions

    options = {"static_image_mode": True, "refine_landmarks": True, "min_detection_confidence": 0.5}
    with solutions.face_mesh.FaceMesh(**options) as model:

        def find(rgb: np.ndarray) -> np.ndarray | None:
            faces = model.process(rgb).multi_face_landmarks
            return np.array([(point.x, point.y) for point in faces[0].landmark]) if faces else None

        yield find


def detect_key_points(image, find, pad=16, zoom=6):
    """The four key points (4,2) of a 48x48 image in its pixels, as MediaPipe sees them, or None."""
    padded = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    large = cv2.resize(padded, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    points = find(cv2.cvtColor(large, cv2.COLOR_GRAY2RGB))
    if points is None:
        return None
    points = points * len(padded) - pad
    return np.array([points[[33, 133]].mean(0), points[[362, 263]].mean(0), points[61], points[291]])


def test_has_the_promised_shapes_and_types(sample):
    assert tuple(ARCHETYPES) == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert sample.images.shape == (1008, 48, 48) and sample.images.dtype == np.uint8
    assert sample.labels.shape == (1008,) and sample.labels.dtype == np.int64
    assert sample.split.shape == (1008,) and sample.split.dtype == np.int8
    assert sample.landmarks.shape == (1008, 4, 2) and sample.landmarks.dtype == np.float32


def test_splits_are_balanced_and_in_order(sample):
    for split, n in enumerate((100, 22, 22)):
        assert np.bincount(sample.labels[sample.split == split]).tolist() == [n] * 7
    rows = sample.split * 7 + sample.labels
    assert (np.diff(rows) >= 0).all(), "rows are ordered by split, then by class"


def test_no_two_images_are_equal(sample):
    assert len(np.unique(sample.images.reshape(len(sample.images), -1), axis=0)) == len(sample.images)


def test_images_use_the_gray_levels_like_photographs(sample):
    pixels = sample.images.reshape(len(sample.images), -1).astype(float)
    assert 90 < pixels.mean() < 160
    assert pixels.std(1).min() > 10
    assert np.mean((sample.images == 0) | (sample.images == 255)) < 0.05


def test_same_seed_same_faces_other_seed_other_faces():
    first, again, other = make_sample(4, seed=1), make_sample(4, seed=1), make_sample(4, seed=2)
    for name in ("images", "labels", "split", "landmarks"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.images != other.images).any(axis=(1, 2)).all()


def test_every_split_needs_a_face_of_every_class():
    assert np.unique(make_sample(4).split).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="at least 4 faces"):
        make_sample(3)


def test_takes_seconds():
    start = time.process_time()
    make_sample(36)
    assert time.process_time() - start < 30 / 4, "the full sample would take more than 30 s of computing"


def test_landmarks_are_where_a_face_has_them(sample):
    left_eye, right_eye, left_lip, right_lip = sample.landmarks.transpose(1, 0, 2)
    assert sample.landmarks.min() > 0 and sample.landmarks.max() < 1
    assert (right_eye[:, 0] - left_eye[:, 0] > 0.25).all()
    assert (right_lip[:, 0] - left_lip[:, 0] > 0.15).all()
    assert (np.minimum(left_lip[:, 1], right_lip[:, 1]) > np.maximum(left_eye[:, 1], right_eye[:, 1])).all()


def test_landmarks_follow_the_expression(sample):
    left_eye, right_eye, left_lip, right_lip = sample.landmarks.transpose(1, 0, 2)
    width = np.linalg.norm(right_lip - left_lip, axis=1) / np.linalg.norm(right_eye - left_eye, axis=1)
    widths = [width[sample.labels == label].mean() for label in range(7)]
    assert widths[HAPPY] > 1.1 * widths[NEUTRAL] > 1.1 * widths[SURPRISE]


def test_mirror_keeps_left_on_the_left(sample):
    image, landmarks = sample.images[0], sample.landmarks[0]
    mirrored, moved = sample_faces.mirror_face(image, landmarks)
    np.testing.assert_array_equal(mirrored, cv2.flip(image, 1))
    np.testing.assert_allclose(moved[:, 0], 1 - landmarks[[1, 0, 3, 2], 0], atol=1e-6)
    assert moved[0, 0] < moved[1, 0] and moved[2, 0] < moved[3, 0]


def test_the_picture_covers_the_whole_canvas():
    """Beyond the frame of the mesh there is no picture to draw from."""
    portrait, rng = sample_faces.load_portrait(), np.random.default_rng(0)
    corners = [(x, y) for x in (0, sample_faces.CANVAS) for y in (0, sample_faces.CANVAS)]
    for _ in range(300):
        strengths = sample_faces.draw_strengths(ARCHETYPES["surprise"], rng)
        points, _ = sample_faces.place_points(portrait, strengths, rng)
        hull = cv2.convexHull(points.astype(np.float32))
        assert all(cv2.pointPolygonTest(hull, corner, False) > 0 for corner in corners)


def test_expressions_can_be_learned(sample):
    pixels = sample.images.reshape(len(sample.images), -1).astype(float)
    pixels = (pixels - pixels.mean(1, keepdims=True)) / pixels.std(1, keepdims=True)
    train, test = sample.split == 0, sample.split == 2
    model = RidgeClassifier(alpha=1000).fit(pixels[train], sample.labels[train])
    assert model.score(pixels[test], sample.labels[test]) > 0.5, "chance is 0.14"


def test_mediapipe_finds_the_faces_and_their_landmarks(sample, face_mesh):
    rows = np.arange(0, len(sample.images), 4)
    found = {row: detect_key_points(sample.images[row], face_mesh) for row in rows}
    found = {row: points for row, points in found.items() if points is not None}
    assert len(found) >= 0.95 * len(rows)
    errors = [np.linalg.norm(points - 48 * sample.landmarks[row], axis=1) for row, points in found.items()]
    assert np.median(errors, axis=0).max() < 1.5, "pixels, per landmark"


def test_stored_mesh_is_what_mediapipe_finds(face_mesh):
    portrait = cv2.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    points = face_mesh(cv2.cvtColor(portrait, cv2.COLOR_BGR2RGB)) * portrait.shape[1::-1]
    stored = np.loadtxt(sample_faces.MESH_FILE, delimiter=",", skiprows=1)
    assert stored[:, 0].tolist() == list(range(478))
    distance = np.linalg.norm(stored[:, 1:3] - points, axis=1)
    assert np.median(distance) < 1 and distance.max() < 4, "pixels; the face is 180 wide"
